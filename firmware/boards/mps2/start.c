/* From reset to main on an emulated Cortex-M: vectors, memory protection, variables, a painted stack, the FPU.
 * Nothing here belongs to a model; the sizes come from the linker script. */
#include <stdint.h>

#include "ft_port.h"

extern uint32_t ft_stack_bottom[], ft_stack_top[];
extern uint32_t ft_data_image[], ft_data_start[], ft_data_end[], ft_bss_start[], ft_bss_end[];

int main(void);
void ft_mpu_enable(void);
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

/* The linker's symbols are the ends of regions, not objects: they are compared as addresses. */
static int before(const volatile void *a, const volatile void *b) { return (uintptr_t)a < (uintptr_t)b; }

#define PAINT 0xC5C5C5C5u
#define MARGIN 64u /* what this function's own frame may take */

/* Volatile keeps the compiler from calling memset, whose frame would be painted over. */
static void paint_stack(void) {
    uint32_t here = 0;
    volatile uint32_t *word = ft_stack_bottom;
    while ((uintptr_t)word < (uintptr_t)&here - MARGIN) *word++ = PAINT;
}

uint32_t ft_stack_bytes(void) { return (uint32_t)((uintptr_t)ft_stack_top - (uintptr_t)ft_stack_bottom); }

uint32_t ft_stack_used(void) {
    const uint32_t *word = ft_stack_bottom;
    while (before(word, ft_stack_top) && *word == PAINT) word++;
    return (uint32_t)((uintptr_t)ft_stack_top - (uintptr_t)word);
}

static void fpu_enable(void) {
#if defined(__ARM_FP)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: full access to coprocessors 10 and 11 */
    __asm__ volatile("dsb\n isb");
#endif
}

void ft_reset(void) {
    fpu_enable();
    ft_mpu_enable();
    for (uint32_t *from = ft_data_image, *to = ft_data_start; before(to, ft_data_end);) *to++ = *from++;
    for (uint32_t *to = ft_bss_start; before(to, ft_bss_end);) *to++ = 0u;
    paint_stack();
    ft_port_start();
    ft_port_exit(main());
}

/* The stack may be what failed: the report starts on a fresh one. */
__attribute__((naked)) void ft_fault(void) {
    __asm__ volatile("mrs r0, msp\n mrs r1, ipsr\n ldr r2, =ft_stack_top\n mov sp, r2\n b ft_fault_report\n .ltorg");
}

static void print_word(const char *name, uint32_t value) {
    ft_port_text(name);
    for (uint32_t shift = 32u; shift > 0u; shift -= 4u) {
        uint32_t digit = (value >> (shift - 4u)) & 15u;
        ft_port_put((char)(digit < 10u ? '0' + digit : 'a' + digit - 10u));
    }
}

void ft_fault_report(const uint32_t *frame, uint32_t exception) {
    uint32_t status = *(volatile uint32_t *)0xE000ED28u; /* CFSR; bit 7 and bit 15 say that an address is known */
    print_word("FAULT exception=", exception);
    print_word(" status=", status);
    if (!before(frame, ft_stack_bottom) && before(frame + 7, ft_stack_top)) print_word(" pc=", frame[6]);
    if ((status & 0x80u) != 0u) print_word(" address=", *(volatile uint32_t *)0xE000ED34u);
    if ((status & 0x8000u) != 0u) print_word(" address=", *(volatile uint32_t *)0xE000ED38u);
    ft_port_put('\n');
    ft_port_exit(100 + (int)exception);
}
