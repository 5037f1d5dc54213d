/* Reset and exceptions of an emulated Xtensa, and its calls to the host. */
#include "ft_board.h"
#include "ft_port.h"

void ft_exception_report(uint32_t cause, uint32_t pc, uint32_t address) __attribute__((noreturn));

/* The emulator starts at the first byte of flash; exceptions lead to fixed places behind it. Whatever is not expected
 * here is a fault: no interrupt is ever enabled. */
__asm__(
    ".section .vectors, \"ax\"\n"
    ".balign 1024\n"
    ".global ft_vectors\n"
    "ft_vectors:\n j ft_begin\n"
    ".org ft_vectors + 0x10\n j ft_exception\n" /* debug */
    ".org ft_vectors + 0x20\n j ft_exception\n" /* not maskable */
    ".org ft_vectors + 0x30\n j ft_exception\n" /* kernel */
    ".org ft_vectors + 0x50\n j ft_exception\n" /* user */
    ".org ft_vectors + 0x70\n j ft_exception\n" /* double */
    ".section .text.ft_begin, \"ax\"\n"
    ".literal_position\n"
    ".balign 4\n"
    "ft_begin:\n"
    "movi a1, ft_stack_top\n"
    "movi a2, ft_vectors\n wsr.vecbase a2\n"
    "movi a2, 0x20\n wsr.ps a2\n rsync\n" /* no interrupt or exception is being handled */
    "movi a0, 0\n"
    "call0 ft_start\n"
    "ft_exception:\n" /* the stack may be what failed: the report starts on a fresh one */
    "movi a1, ft_stack_top\n"
    "rsr.exccause a2\n rsr.epc1 a3\n rsr.excvaddr a4\n"
    "call0 ft_exception_report\n"
    ".text\n");

void ft_exception_report(uint32_t cause, uint32_t pc, uint32_t address) {
    ft_board_word("FAULT exception=", cause);
    ft_board_word(" pc=", pc);
    ft_board_word(" address=", address);
    ft_port_put('\n');
    ft_port_exit(100 + (int)cause);
}

/* Simcalls: number in a2, arguments in a3 to a5, result in a2. Flags are the host's. */
enum { EXIT = 1, READ = 3, WRITE = 4, OPEN = 5, CLOSE = 6, WORDS = 1000, WORD_BYTES = 1001, GET_WORDS = 1002 };
enum { SERIAL_PORT = 1, FOR_READING = 0, FOR_WRITING = 0x241, NEW_FILE_MODE = 0644, MOST_WORDS = 8 };

static int32_t simcall(int32_t number, uintptr_t a, uintptr_t b, uintptr_t c) {
    register int32_t a2 __asm__("a2") = number;
    register uintptr_t a3 __asm__("a3") = a, a4 __asm__("a4") = b, a5 __asm__("a5") = c;
    __asm__ volatile("simcall" : "+r"(a2), "+r"(a3) : "r"(a4), "r"(a5) : "memory");
    return a2;
}

void ft_port_put(char character) { (void)simcall(WRITE, SERIAL_PORT, (uintptr_t)&character, 1u); }

void ft_port_exit(int code) {
    for (;;) (void)simcall(EXIT, (uintptr_t)code, 0u, 0u);
}

int32_t ft_file_open(const char *path, int writes) {
    return simcall(OPEN, (uintptr_t)path, writes ? FOR_WRITING : FOR_READING, NEW_FILE_MODE);
}

/* The host may move a part only. */
static uint32_t file_move(int32_t number, int32_t file, uintptr_t data, size_t size) {
    while (size > 0u) {
        int32_t moved = simcall(number, (uintptr_t)file, data, size);
        if (moved <= 0) break;
        data += (uint32_t)moved;
        size -= (uint32_t)moved;
    }
    return (uint32_t)size;
}

uint32_t ft_file_read(int32_t file, void *data, size_t size) { return file_move(READ, file, (uintptr_t)data, size); }

uint32_t ft_file_write(int32_t file, const void *data, size_t size) {
    return file_move(WRITE, file, (uintptr_t)data, size);
}

int ft_file_close(int32_t file) { return simcall(CLOSE, (uintptr_t)file, 0u, 0u); }

/* The host writes pointers to the words, then the words. */
size_t ft_command_line(char *line, size_t size) {
    uint32_t block[MOST_WORDS + 32];
    uint32_t words = (uint32_t)simcall(WORDS, 0u, 0u, 0u), bytes = (uint32_t)simcall(WORD_BYTES, 0u, 0u, 0u);
    if (words == 0u || words > MOST_WORDS || bytes > sizeof block) return 0u;
    (void)simcall(GET_WORDS, (uintptr_t)block, 0u, 0u);
    const char *from = (const char *)(uintptr_t)block[0], *end = (const char *)block + bytes;
    size_t count = 0;
    while (from < end && count < size) line[count++] = *from++;
    return count;
}

void ft_board_limit(void) {} /* the emulated core faults outside its own memory */
