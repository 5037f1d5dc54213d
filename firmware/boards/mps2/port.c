/* The port of an emulated board: its serial port for text, semihosting for files and the end. */
#include "ft_port.h"

#include <stddef.h>

/* CMSDK UART 0 */
#define UART_DATA (*(volatile uint32_t *)0x40004000u)
#define UART_STATE (*(volatile uint32_t *)0x40004004u)
#define UART_CONTROL (*(volatile uint32_t *)0x40004008u)
#define UART_DIVIDER (*(volatile uint32_t *)0x40004010u)

enum { OPEN = 0x01, CLOSE = 0x02, WRITE = 0x05, READ = 0x06, COMMAND_LINE = 0x15, EXIT_EXTENDED = 0x20 };
enum { MODE_READ = 1, MODE_WRITE = 5, APPLICATION_EXIT = 0x20026 };
enum { FILES_FAILED = 3, LINE_BYTES = 128 };

static int32_t semihost(int32_t operation, const void *arguments) {
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void ft_port_start(void) {
    UART_DIVIDER = 16u;
    UART_CONTROL = 1u;
}

void ft_port_put(char character) {
    while ((UART_STATE & 1u) != 0u) {
    }
    UART_DATA = (uint8_t)character;
}

void ft_port_text(const char *text) {
    while (*text != '\0') ft_port_put(*text++);
}

void ft_port_exit(int code) {
    const uint32_t arguments[2] = {APPLICATION_EXIT, (uint32_t)code};
    for (;;) (void)semihost(EXIT_EXTENDED, arguments);
}

/* The bound keeps the compiler from calling strlen, which would cost 220 bytes. */
static uint32_t length_of(const char *path) {
    uint32_t length = 0;
    while (length < LINE_BYTES && path[length] != '\0') length++;
    return length;
}

static int32_t file_open(const char *path, uint32_t mode) {
    const uintptr_t arguments[3] = {(uintptr_t)path, mode, length_of(path)};
    return semihost(OPEN, arguments);
}

/* Read or write `size` bytes; return how many were not. */
static uint32_t file_move(int32_t operation, int32_t file, const void *data, size_t size) {
    const uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)data, size};
    return (uint32_t)semihost(operation, arguments);
}

static int32_t file_close(int32_t file) {
    const uint32_t arguments[1] = {(uint32_t)file};
    return semihost(CLOSE, arguments);
}

/* Find the word that begins with `key` among words that each end in 0; return what follows it, or null. */
static const char *value_of(const char *words, size_t bytes, const char *key) {
    for (size_t at = 0; at < bytes; at++) {
        size_t i = 0;
        while (key[i] != '\0' && words[at + i] == key[i]) i++;
        if (key[i] == '\0') return words + at + i;
        while (at < bytes && words[at] != '\0') at++;
    }
    return NULL;
}

/* A function of its own: the instruction counter starts when ft_invoke is entered and stops back in here. */
__attribute__((noinline, noclone)) ft_status_t ft_port_invoke(ft_model_t *model);
ft_status_t ft_port_invoke(ft_model_t *model) {
    ft_status_t status = ft_invoke(model);
    __asm__ volatile("" ::: "memory"); /* no tail call */
    return status;
}

static int serve_files(ft_model_t *model, int32_t in, int32_t out) {
    for (;;) {
        size_t size = ft_input_bytes(model);
        uint32_t missing = file_move(READ, in, ft_input(model), size);
        if (missing == size) return 0;
        if (missing != 0u || ft_port_invoke(model) != FT_OK) return FILES_FAILED;
        if (file_move(WRITE, out, ft_output(model), ft_output_bytes(model)) != 0u) return FILES_FAILED;
    }
}

int ft_port_serve(ft_model_t *model) {
    char line[LINE_BYTES];
    uintptr_t block[2] = {(uintptr_t)line, sizeof line};
    if (semihost(COMMAND_LINE, block) != 0) return 0;
    for (char *c = line; *c != '\0'; c++) {
        if (*c == ' ') *c = '\0';
    }
    const char *inputs = value_of(line, block[1], "inputs="), *outputs = value_of(line, block[1], "outputs=");
    if (inputs == NULL || outputs == NULL) return 0;
    int32_t in = file_open(inputs, MODE_READ), out = file_open(outputs, MODE_WRITE);
    int result = in < 0 || out < 0 ? FILES_FAILED : serve_files(model, in, out);
    if (out >= 0 && file_close(out) != 0) result = FILES_FAILED;
    if (in >= 0) (void)file_close(in);
    return result;
}
