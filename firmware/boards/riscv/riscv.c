/* Reset, traps and memory limits of an emulated 32-bit RISC-V, and its call to the host. */
#include "ft_board.h"
#include "ft_port.h"

void ft_vectors(void);
void ft_trap(void);
void ft_trap_report(uint32_t cause, uint32_t pc, uint32_t address) __attribute__((noreturn));

/* The first instructions: the emulator jumps to the first byte of flash. */
__attribute__((naked, used, section(".vectors"))) void ft_vectors(void) {
    __asm__ volatile("la sp, ft_stack_top\n la t0, ft_trap\n csrw mtvec, t0\n j ft_start");
}

/* The emulator knows the call by the instructions around the break, none of them compressed. */
__attribute__((naked)) int32_t ft_semihost(int32_t operation, const void *arguments);
__attribute__((naked)) int32_t ft_semihost(int32_t operation __attribute__((unused)),
                                           const void *arguments __attribute__((unused))) {
    __asm__ volatile(
        ".option push\n .option norvc\n .balign 16\n"
        "slli x0, x0, 0x1f\n ebreak\n srai x0, x0, 7\n ret\n"
        ".option pop");
}

#define LOCKED 0x80u /* holds for machine mode too */
#define UP_TO 0x08u  /* the entry covers from the address before up to its own */
#define READ 1u
#define WRITE 2u
#define EXECUTE 4u

/* Physical memory protection: nothing, flash, nothing, RAM, nothing. */
void ft_board_limit(void) {
    uint32_t flash = (uint32_t)FT_FLASH_START, ram = (uint32_t)FT_RAM_START;
    uint32_t none = LOCKED | UP_TO, code = none | READ | EXECUTE, data = none | READ | WRITE;
    __asm__ volatile("csrw pmpaddr0, %0" : : "r"(flash >> 2));
    __asm__ volatile("csrw pmpaddr1, %0" : : "r"((flash + (uint32_t)FT_FLASH_SIZE) >> 2));
    __asm__ volatile("csrw pmpaddr2, %0" : : "r"(ram >> 2));
    __asm__ volatile("csrw pmpaddr3, %0" : : "r"((ram + (uint32_t)FT_RAM_SIZE) >> 2));
    __asm__ volatile("csrw pmpaddr4, %0" : : "r"(0xFFFFFFFFu));
    __asm__ volatile("csrw pmpcfg1, %0" : : "r"(none));
    __asm__ volatile("csrw pmpcfg0, %0" : : "r"(none | code << 8 | none << 16 | data << 24));
}

/* The stack may be what failed: the report starts on a fresh one. */
__attribute__((naked, aligned(4))) void ft_trap(void) {
    __asm__ volatile("la sp, ft_stack_top\n csrr a0, mcause\n csrr a1, mepc\n csrr a2, mtval\n j ft_trap_report");
}

void ft_trap_report(uint32_t cause, uint32_t pc, uint32_t address) {
    ft_board_word("FAULT exception=", cause);
    ft_board_word(" pc=", pc);
    ft_board_word(" address=", address);
    ft_port_put('\n');
    ft_port_exit(100 + (int)cause);
}
