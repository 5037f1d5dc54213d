/* Reset and faults of an emulated Cortex-M, and its call to the host. */
#include "ft_board.h"
#include "ft_port.h"

#define MAIN_EXTENSION (__ARM_ARCH >= 7) /* Armv7-M and later report faults in registers */
#define STACK_LIMIT (__ARM_ARCH >= 8)    /* Armv8-M knows where the stack ends */

void ft_reset(void) __attribute__((noreturn));
void ft_fault(void);
void ft_fault_report(const uint32_t *frame, uint32_t exception) __attribute__((noreturn));

typedef struct ft_vectors {
    const uint32_t *stack;
    void (*handlers[15])(void);
} ft_vectors_t;

/* Whatever is not expected here is a fault: no interrupt is ever enabled. */
extern const ft_vectors_t ft_vectors;
__attribute__((section(".vectors"), used)) const ft_vectors_t ft_vectors = {
    ft_stack_top,
    {ft_reset, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault, ft_fault,
     ft_fault, ft_fault, ft_fault, ft_fault},
};

int32_t ft_semihost(int32_t operation, const void *arguments);
int32_t ft_semihost(int32_t operation, const void *arguments) {
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

#if STACK_LIMIT
static void stack_limit(void) { __asm__ volatile("msr msplim, %0" : : "r"(ft_stack_bottom)); }
#else
static void stack_limit(void) {}
#endif

#if defined(__ARM_FP)
static void fpu_enable(void) {
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: full access to coprocessors 10 and 11 */
    __asm__ volatile("dsb\n isb");
}
#else
static void fpu_enable(void) {}
#endif

void ft_reset(void) {
    stack_limit();
    fpu_enable();
    ft_start();
}

/* The stack may be what failed: the report starts on a fresh one. */
__attribute__((naked)) void ft_fault(void) {
    __asm__ volatile("mrs r0, msp\n mrs r1, ipsr\n ldr r2, =ft_stack_top\n mov sp, r2\n bl ft_fault_report\n .ltorg");
}

#if MAIN_EXTENSION
static void report_status(void) {
    uint32_t status = *(volatile uint32_t *)0xE000ED28u; /* CFSR; bit 7 and bit 15 say that an address is known */
    ft_board_word(" status=", status);
    if ((status & 0x80u) != 0u) ft_board_word(" address=", *(volatile uint32_t *)0xE000ED34u);
    if ((status & 0x8000u) != 0u) ft_board_word(" address=", *(volatile uint32_t *)0xE000ED38u);
}
#else
static void report_status(void) {}
#endif

void ft_fault_report(const uint32_t *frame, uint32_t exception) {
    uintptr_t first = (uintptr_t)frame, bottom = (uintptr_t)ft_stack_bottom, top = (uintptr_t)ft_stack_top;
    ft_board_word("FAULT exception=", exception);
    if (first >= bottom && first + 32u <= top) ft_board_word(" pc=", frame[6]);
    report_status();
    ft_port_put('\n');
    ft_port_exit(100 + (int)exception);
}
