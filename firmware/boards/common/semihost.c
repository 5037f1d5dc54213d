/* The port of boards whose emulator offers Arm's semihosting: text, files and the end are calls to the host. RISC-V
 * took the calls over as they are. */
#include "ft_board.h"
#include "ft_port.h"

#if defined(__arm__) || defined(__riscv)

enum { OPEN = 0x01, CLOSE = 0x02, PUT = 0x03, WRITE = 0x05, READ = 0x06, COMMAND_LINE = 0x15, EXIT_EXTENDED = 0x20 };
enum { MODE_READ = 1, MODE_WRITE = 5, APPLICATION_EXIT = 0x20026, PATH_BYTES = 128 };

int32_t ft_semihost(int32_t operation, const void *arguments);

void ft_port_put(char character) { (void)ft_semihost(PUT, &character); }

void ft_port_exit(int code) {
    const uint32_t arguments[2] = {APPLICATION_EXIT, (uint32_t)code};
    for (;;) (void)ft_semihost(EXIT_EXTENDED, arguments);
}

/* The bound keeps the compiler from calling strlen, which would cost 220 bytes. */
static uint32_t length_of(const char *path) {
    uint32_t length = 0;
    while (length < PATH_BYTES && path[length] != '\0') length++;
    return length;
}

int32_t ft_file_open(const char *path, int writes) {
    const uintptr_t arguments[3] = {(uintptr_t)path, writes ? MODE_WRITE : MODE_READ, length_of(path)};
    return ft_semihost(OPEN, arguments);
}

static uint32_t file_move(int32_t operation, int32_t file, const void *data, size_t size) {
    const uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)data, size};
    return (uint32_t)ft_semihost(operation, arguments);
}

uint32_t ft_file_read(int32_t file, void *data, size_t size) { return file_move(READ, file, data, size); }

uint32_t ft_file_write(int32_t file, const void *data, size_t size) { return file_move(WRITE, file, data, size); }

int ft_file_close(int32_t file) {
    const uint32_t arguments[1] = {(uint32_t)file};
    return ft_semihost(CLOSE, arguments);
}

size_t ft_command_line(char *line, size_t size) {
    uintptr_t block[2] = {(uintptr_t)line, size};
    if (ft_semihost(COMMAND_LINE, block) != 0) return 0u;
    for (char *c = line; *c != '\0'; c++) {
        if (*c == ' ') *c = '\0';
    }
    return block[1];
}

#endif
