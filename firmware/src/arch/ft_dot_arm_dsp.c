/* The inner loops of convolutions for Cortex-M with DSP instructions.
 *
 * Eight sums stay in registers, and every word of the window feeds two products by SMLAD. Written in assembly,
 * because all fourteen registers are in use and a compiler would spill some. */
#include "../ft_conv.h"

#if FT_ARCH_ARM_DSP

/* r0 taps, r1 and r3 inputs, r2 window, r12 and lr weights, r4-r11 sums; [sp] end, [sp, 4] where sums go */
FT_HOT __attribute__((naked)) void ft_dot_2x4(
    __attribute__((unused)) const uint32_t *taps, __attribute__((unused)) const uint32_t *end,
    __attribute__((unused)) const uint32_t *window, __attribute__((unused)) int32_t *sums) {
    __asm__ volatile(
        "push {r1, r3, r4-r11, lr}\n"
        "ldm r3, {r4-r11}\n"
        "1:\n"
        ".rept 4\n"
        "ldmia r0!, {r1, r12, lr}\n"
        "add r2, r2, r1, lsl #2\n"
        "ldrd r1, r3, [r2]\n"
        "smlad r4, r1, r12, r4\n"
        "smlad r5, r3, r12, r5\n"
        "smlad r8, r1, lr, r8\n"
        "smlad r9, r3, lr, r9\n"
        "ldrd r1, r3, [r2, #8]\n"
        "smlad r6, r1, r12, r6\n"
        "smlad r7, r3, r12, r7\n"
        "smlad r10, r1, lr, r10\n"
        "smlad r11, r3, lr, r11\n"
        ".endr\n"
        "ldr r1, [sp]\n"
        "cmp r0, r1\n"
        "bne 1b\n"
        "ldr r3, [sp, #4]\n"
        "stm r3, {r4-r11}\n"
        "add sp, sp, #8\n"
        "pop {r4-r11, pc}\n");
}

/* r0 taps, r1 end, r2 window, r3 and lr inputs, r12 weights, r4-r11 sums; [sp] where sums go */
FT_HOT __attribute__((naked)) void ft_dot_1x8(
    __attribute__((unused)) const uint32_t *taps, __attribute__((unused)) const uint32_t *end,
    __attribute__((unused)) const uint32_t *window, __attribute__((unused)) int32_t *sums) {
    __asm__ volatile(
        "push {r3-r11, lr}\n"
        "ldm r3, {r4-r11}\n"
        "1:\n"
        ".rept 2\n"
        "ldrd lr, r12, [r0], #8\n"
        "add r2, r2, lr, lsl #2\n"
        "ldrd lr, r3, [r2]\n"
        "smlad r4, lr, r12, r4\n"
        "smlad r5, r3, r12, r5\n"
        "ldrd lr, r3, [r2, #8]\n"
        "smlad r6, lr, r12, r6\n"
        "smlad r7, r3, r12, r7\n"
        "ldrd lr, r3, [r2, #16]\n"
        "smlad r8, lr, r12, r8\n"
        "smlad r9, r3, r12, r9\n"
        "ldrd lr, r3, [r2, #24]\n"
        "smlad r10, lr, r12, r10\n"
        "smlad r11, r3, r12, r11\n"
        ".endr\n"
        "cmp r0, r1\n"
        "bne 1b\n"
        "pop {r3}\n"
        "stm r3, {r4-r11}\n"
        "pop {r4-r11, pc}\n");
}

#endif
