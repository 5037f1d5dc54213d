/* The inner loops of convolutions in plain C: the definition that every twin equals. */
#include "../ft_conv.h"

#if !FT_ARCH_ARM_DSP

static inline int32_t dot(uint32_t a, uint32_t b) { return (int16_t)a * (int16_t)b + (int16_t)(a >> 16) * (int16_t)(b >> 16); }

FT_HOT void ft_dot_2x4(const uint32_t *taps, const uint32_t *end, const uint32_t *window, int32_t *sums) {
    for (; taps < end; taps += 3) {
        window += (int32_t)taps[0];
        for (uint32_t i = 0; i < 4u; i++) {
            sums[i] += dot(window[i], taps[1]);
            sums[i + 4u] += dot(window[i], taps[2]);
        }
    }
}

FT_HOT void ft_dot_1x8(const uint32_t *taps, const uint32_t *end, const uint32_t *window, int32_t *sums) {
    for (; taps < end; taps += 2) {
        window += (int32_t)taps[0];
        for (uint32_t i = 0; i < 8u; i++) sums[i] += dot(window[i], taps[1]);
    }
}

#endif
