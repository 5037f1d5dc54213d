/* Small operations of the inner loops, with the DSP instructions of Cortex-M. */
#ifndef FT_ARCH_ARM_DSP_H
#define FT_ARCH_ARM_DSP_H

#include <stdint.h>

static inline uint32_t ft_pair(int32_t first, int32_t second) {
    uint32_t pair;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(first), "r"(second));
    return pair;
}

static inline void ft_widen(uint32_t four, uint32_t *first, uint32_t *second) {
    uint32_t even, odd;
    __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(four));
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(four));
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(*first) : "r"(even), "r"(odd));
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(*second) : "r"(odd), "r"(even));
}

/* A shift by 32 leaves nothing, which C does not say but these processors do. */
static inline uint32_t ft_bits(const uint32_t *words, uint32_t at) {
    words += at / 32u;
    uint32_t low = words[0], high = words[1], shift = at % 32u;
    __asm__("lsl %0, %0, %1" : "+r"(high) : "r"(32u - shift));
    return low >> shift | high;
}

/* These processors load words from any address. */
static inline uint32_t ft_few_bits(const uint32_t *words, uint32_t at) {
    uint32_t bits;
    __builtin_memcpy(&bits, (const uint8_t *)words + at / 8u, sizeof bits);
    return bits >> (at % 8u);
}

static inline int32_t ft_high(int32_t x, int32_t multiplier, int32_t offset) {
    int32_t high;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(high) : "r"(x), "r"(multiplier), "r"(offset));
    return high;
}

static inline int32_t ft_saturate(int32_t value) {
    __asm__("ssat %0, #8, %1" : "=r"(value) : "r"(value));
    return value;
}

/* Forward, so that words may move down over themselves. */
static inline void ft_copy_words(uint32_t *to, const uint32_t *from, uint32_t words) {
    for (; words >= 8u; words -= 8u)
        __asm__ volatile("ldmia %0!, {r3, r4, r5, r6, r8, r9, r10, r12}\n stmia %1!, {r3, r4, r5, r6, r8, r9, r10, r12}"
                         : "+r"(from), "+r"(to) : : "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r12", "memory");
    while (words-- > 0u) *to++ = *from++;
}

#endif
