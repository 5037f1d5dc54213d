/* From the first stack frame to main on an emulated board: variables, memory's limits, a painted stack. Nothing here
 * belongs to a model; the sizes come from the linker script. */
#include "ft_board.h"
#include "ft_port.h"

extern uint32_t ft_data_image[], ft_data_start[], ft_data_end[], ft_bss_start[], ft_bss_end[];

int main(void);

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

void ft_start(void) {
    ft_board_limit();
    for (uint32_t *from = ft_data_image, *to = ft_data_start; before(to, ft_data_end);) *to++ = *from++;
    for (uint32_t *to = ft_bss_start; before(to, ft_bss_end);) *to++ = 0u;
    paint_stack();
    ft_port_exit(main());
}

void ft_board_word(const char *name, uint32_t value) {
    ft_port_text(name);
    for (uint32_t shift = 32u; shift > 0u; shift -= 4u) {
        uint32_t digit = (value >> (shift - 4u)) & 15u;
        ft_port_put((char)(digit < 10u ? '0' + digit : 'a' + digit - 10u));
    }
}
