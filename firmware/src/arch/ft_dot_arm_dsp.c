/* The inner loops of convolutions for Cortex-M with DSP instructions.
 *
 * Eight sums stay in registers, every word of the window feeds two products by SMLAD, and outputs are made from the
 * sums where they are. Written in assembly, because all fourteen registers are in use and a compiler would spill
 * some. */
#include "../ft_conv.h"

#if FT_ARCH_ARM_DSP

#define UNUSED __attribute__((unused))

/* r0 window, r1 taps, r2 and r3 inputs, r12 and lr weights, r4-r11 sums; the end of the taps is pushed */
#define LOOP_2X4 \
    "ldm r1, {r1, r2, r4, r8}\n" \
    "mov r5, r4\n mov r6, r4\n mov r7, r4\n" \
    "mov r9, r8\n mov r10, r8\n mov r11, r8\n" \
    "push {r2}\n" \
    "1:\n" \
    ".rept 4\n" \
    "ldmia r1!, {r3, r12, lr}\n" \
    "add r0, r0, r3, lsl #2\n" \
    "ldrd r2, r3, [r0]\n" \
    "smlad r4, r2, r12, r4\n smlad r5, r3, r12, r5\n" \
    "smlad r8, r2, lr, r8\n smlad r9, r3, lr, r9\n" \
    "ldrd r2, r3, [r0, #8]\n" \
    "smlad r6, r2, r12, r6\n smlad r7, r3, r12, r7\n" \
    "smlad r10, r2, lr, r10\n smlad r11, r3, lr, r11\n" \
    ".endr\n" \
    "ldr r2, [sp]\n" \
    "cmp r1, r2\n" \
    "bne 1b\n" \
    "pop {r2}\n"

/* As LOOP_2X4, but lr holds the end of the taps and r12 the weights of both channels */
#define LOOP_DEPTHWISE \
    "ldm r1, {r1, r2, r4, r8}\n" \
    "mov r5, r4\n mov r6, r4\n mov r7, r4\n" \
    "mov r9, r8\n mov r10, r8\n mov r11, r8\n" \
    "mov lr, r2\n" \
    "1:\n" \
    ".rept 3\n" \
    "ldrd r3, r12, [r1], #8\n" \
    "add r0, r0, r3, lsl #2\n" \
    "ldrd r2, r3, [r0]\n" \
    "smlabb r4, r2, r12, r4\n smlabb r5, r3, r12, r5\n" \
    "smlatt r8, r2, r12, r8\n smlatt r9, r3, r12, r9\n" \
    "ldrd r2, r3, [r0, #8]\n" \
    "smlabb r6, r2, r12, r6\n smlabb r7, r3, r12, r7\n" \
    "smlatt r10, r2, r12, r10\n smlatt r11, r3, r12, r11\n" \
    ".endr\n" \
    "cmp r1, lr\n" \
    "bne 1b\n"

/* r0 window, r1 taps, r2, r3 and lr inputs, r12 weights, r4-r11 sums; the next tap's words are loaded ahead. Fifty-two
 * bytes. */
#define TAP_1X8 \
    "add r0, r0, lr, lsl #2\n" \
    "ldmia.w r0!, {r2, r3, lr}\n" \
    "smlad r4, r2, r12, r4\n smlad r5, r3, r12, r5\n smlad r6, lr, r12, r6\n" \
    "ldmia.w r0!, {r2, r3, lr}\n" \
    "smlad r7, r2, r12, r7\n smlad r8, r3, r12, r8\n smlad r9, lr, r12, r9\n" \
    "ldrd r2, r3, [r0]\n" \
    "smlad r10, r2, r12, r10\n smlad r11, r3, r12, r11\n" \
    "ldrd lr, r12, [r1], #8\n"

/* ft_quick_rescale_twice and ft_saturate of a sum: r1 multiplier, r3 offset, r12 shift, lr free */
#define OUTPUT_TWICE(sum) \
    "add lr, r3, " sum ", asr #31\n" \
    "smmlar " sum ", " sum ", r1, lr\n" \
    "asr " sum ", " sum ", r12\n" \
    "ssat " sum ", #8, " sum "\n"

/* The same of half a sum. */
#define OUTPUT(sum) "lsl " sum ", " sum ", #1\n" OUTPUT_TWICE(sum)

/* Two outputs at r2, a pitch of r0 apart. */
#define STORE(first, second) "strb " first ", [r2]\n strb " second ", [r2, r0]\n add r2, r2, r0, lsl #1\n"
#define OUTPUTS(first, second) OUTPUT(first) OUTPUT(second) STORE(first, second)
#define OUTPUTS_TWICE(first, second) OUTPUT_TWICE(first) OUTPUT_TWICE(second) STORE(first, second)

FT_HOT __attribute__((naked)) void ft_sums_2x4(UNUSED const uint32_t *window, UNUSED const ft_block_t *block,
                                               UNUSED int32_t *sums) {
    __asm__ volatile("push {r2, r4-r11, lr}\n" LOOP_2X4 "pop {r2}\n stm r2, {r4-r11}\n pop {r4-r11, pc}\n");
}

/* Behind a loop over two channels, entered with r1, r2, r4-r11 and lr pushed. */
#define OUTPUTS_OF_TWO \
    "ldr r0, [sp]\n" /* the block */ \
    "add r0, r0, #16\n" \
    "ldm r0, {r0, r1, r3, r12}\n" \
    "ldr r2, [sp, #4]\n" \
    OUTPUTS("r4", "r5") OUTPUTS("r6", "r7") \
    "pop {r3, r4}\n" /* r4: out */ \
    "add r3, r3, #32\n" \
    "ldm r3, {r1, r3, r12}\n" \
    "add r2, r4, #1\n" \
    OUTPUTS("r8", "r9") OUTPUTS("r10", "r11") \
    "pop {r4-r11, pc}\n"

FT_HOT __attribute__((naked)) void ft_outputs_2x4(UNUSED const uint32_t *window, UNUSED const ft_block_t *block,
                                                  UNUSED int8_t *out) {
    __asm__ volatile("push {r1, r2, r4-r11, lr}\n" LOOP_2X4 OUTPUTS_OF_TWO);
}

FT_HOT __attribute__((naked)) void ft_sums_depthwise(UNUSED const uint32_t *window, UNUSED const ft_block_t *block,
                                                     UNUSED int32_t *sums) {
    __asm__ volatile("push {r2, r4-r11, lr}\n" LOOP_DEPTHWISE "pop {r2}\n stm r2, {r4-r11}\n pop {r4-r11, pc}\n");
}

FT_HOT __attribute__((naked)) void ft_outputs_depthwise(UNUSED const uint32_t *window, UNUSED const ft_block_t *block,
                                                        UNUSED int8_t *out) {
    __asm__ volatile("push {r1, r2, r4-r11, lr}\n" LOOP_DEPTHWISE OUTPUTS_OF_TWO);
}

/* Four inputs times four weights of a channel, all as the signed bytes of words: r5 and r6 are the inputs at even and odd
 * places, r7 and r8 free */
#define ROW_OF_FOUR(row, sum) \
    "ldr r7, [" row "], #4\n" \
    "sxtb16 r8, r7\n sxtb16 r7, r7, ror #8\n" \
    "smlad " sum ", r5, r8, " sum "\n smlad " sum ", r6, r7, " sum "\n"
#define FOUR_INPUTS \
    "ldr r6, [r0], #4\n" \
    "sxtb16 r5, r6\n sxtb16 r6, r6, ror #8\n" \
    ROW_OF_FOUR("r1", "r9") ROW_OF_FOUR("r2", "r10") ROW_OF_FOUR("r3", "r11") ROW_OF_FOUR("r4", "r12")
#define ONE_OF(row, sum) "ldrsb r7, [" row "], #1\n mla " sum ", r5, r7, " sum "\n"

/* r0 inputs, r1-r4 rows of weights, which these processors load from any address, r9-r12 sums, lr the end of whole words
 * of inputs; how many inputs there are is pushed. An odd number of words begins in the middle. */
FT_HOT __attribute__((naked)) void ft_sums_vector(UNUSED const int8_t *in, UNUSED const ft_fan_t *fan,
                                                  UNUSED int32_t *sums) {
    __asm__ volatile(
        "push {r2, r4-r11, lr}\n"
        "ldm r1, {r1, r2, r3, r6}\n"
        "add r1, r1, r2\n add r2, r1, r3\n add r4, r2, r3, lsl #1\n add r3, r2, r3\n"
        "push {r6}\n"
        "bic lr, r6, #3\n"
        "add lr, lr, r0\n"
        "mov r9, #0\n mov r10, r9\n mov r11, r9\n mov r12, r9\n"
        "tst r6, #4\n"
        "bne 2f\n"
        "cmp r0, lr\n"
        "beq 3f\n"
        "1:\n"
        FOUR_INPUTS
        "2:\n"
        FOUR_INPUTS
        "cmp r0, lr\n"
        "bne 1b\n"
        "3:\n" /* the last inputs, up to three */
        "pop {r6}\n"
        "ands r6, r6, #3\n"
        "beq 5f\n"
        "4:\n"
        "ldrsb r5, [r0], #1\n"
        ONE_OF("r1", "r9") ONE_OF("r2", "r10") ONE_OF("r3", "r11") ONE_OF("r4", "r12")
        "subs r6, r6, #1\n"
        "bne 4b\n"
        "5:\n"
        "pop {r2}\n stm r2, {r9-r12}\n pop {r4-r11, pc}\n");
}

FT_HOT __attribute__((naked)) void ft_sums_1x8(UNUSED const uint32_t *window, UNUSED const ft_sweep_t *sweep,
                                               UNUSED int32_t *sums) {
    __asm__ volatile(
        "push {r2, r4-r11, lr}\n"
        "add r2, r1, #16\n"
        "ldr r1, [r1, #8]\n" /* the taps */
        "ldm r2, {r4-r11}\n"
        "ldrd lr, r12, [r1], #8\n"
        "1:\n" TAP_1X8
        "cmp r12, #0\n"
        "bne 1b\n"
        "pop {r2}\n stm r2, {r4-r11}\n pop {r4-r11, pc}\n");
}

/* Taps are made in fours, of which the first begin in the middle: r2 is where. r0 is 4 more than the sweep's address,
 * for everything that a block starts with to lie behind it. */
FT_HOT __attribute__((naked)) void ft_sweep_1x8(UNUSED ft_sweep_t *sweep, UNUSED uint32_t taps) {
    __asm__ volatile(
        "add r0, r0, #4\n"
        "push {r0, r4-r11, lr}\n"
        "rsb r1, r1, #0\n"
        "and r1, r1, #3\n"
        "mov r2, #52\n"
        "adr.w r3, 1f\n"
        "mla r1, r1, r2, r3\n"
        "str r1, [r0, #8]\n"
        "2:\n" /* a block */
        "ldm r0, {r0, r1, r2, r4-r11}\n"
        "ldrd lr, r12, [r1], #8\n"
        "mov pc, r2\n"
        "1:\n" TAP_1X8 TAP_1X8 TAP_1X8 TAP_1X8
        "cmp r12, #0\n"
        "bne 1b\n"
        "ldr r0, [sp]\n"
        "add r0, r0, #44\n"
        "ldm r0, {r0, r1, r2, r3, r12}\n"
        OUTPUTS_TWICE("r4", "r5") OUTPUTS_TWICE("r6", "r7") OUTPUTS_TWICE("r8", "r9") OUTPUTS_TWICE("r10", "r11")
        "ldr r0, [sp]\n"
        "ldrd r3, r1, [r0, #-4]\n"
        "str r2, [r0, #52]\n"
        "add r1, r1, #32\n"
        "str r1, [r0]\n"
        "cmp r1, r3\n"
        "bne 2b\n"
        "add r4, r0, #64\n" /* the next row */
        "ldm r4, {r5, r6, r7, r8}\n"
        "add r3, r3, r6\n"
        "sub r1, r3, r7\n"
        "add r2, r2, r8\n"
        "strd r3, r1, [r0, #-4]\n"
        "str r2, [r0, #52]\n"
        "subs r5, r5, #1\n"
        "str r5, [r4]\n"
        "bne 2b\n"
        "pop {r0, r4-r11, pc}\n");
}

#endif
