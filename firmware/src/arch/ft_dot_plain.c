/* The inner loops of convolutions in plain C: the definition that every twin equals. */
#include "../ft_conv.h"

#if !FT_ARCH_ARM_DSP

static inline int32_t dot(uint32_t a, uint32_t b) {
    return (int16_t)a * (int16_t)b + (int16_t)(a >> 16) * (int16_t)(b >> 16);
}

FT_HOT void ft_sums_2x4(const uint32_t *window, const ft_block_t *block, int32_t *sums) {
    for (uint32_t i = 0; i < 8u; i++) sums[i] = block->bias[i / 4u];
    for (const uint32_t *tap = block->taps; tap < block->end; tap += 3) {
        window += (int32_t)tap[0];
        for (uint32_t i = 0; i < 4u; i++) {
            sums[i] += dot(window[i], tap[1]);
            sums[i + 4u] += dot(window[i], tap[2]);
        }
    }
}

FT_HOT void ft_sums_1x8(const uint32_t *window, const ft_sweep_t *sweep, int32_t *sums) {
    for (uint32_t i = 0; i < 8u; i++) sums[i] = sweep->bias[i];
    for (const uint32_t *tap = sweep->taps; tap[1] != 0u; tap += 2, window += FT_SPARSE_MOVES) {
        window += (int32_t)tap[0];
        for (uint32_t i = 0; i < 8u; i++) sums[i] += dot(window[i], tap[1]);
    }
}

FT_HOT void ft_sums_depthwise(const uint32_t *window, const ft_block_t *block, int32_t *sums) {
    for (uint32_t i = 0; i < 8u; i++) sums[i] = block->bias[i / 4u];
    for (const uint32_t *tap = block->taps; tap < block->end; tap += 2) {
        window += (int32_t)tap[0];
        for (uint32_t i = 0; i < 4u; i++) {
            sums[i] += (int16_t)window[i] * (int16_t)tap[1];
            sums[i + 4u] += (int16_t)(window[i] >> 16) * (int16_t)(tap[1] >> 16);
        }
    }
}

static void outputs_of_two(const int32_t *sums, const ft_block_t *block, int8_t *out) {
    for (uint32_t i = 0; i < 4u; i++, out += block->pitch) {
        out[0] = (int8_t)ft_saturate(ft_quick_rescale(sums[i], &block->scale[0]));
        out[1] = (int8_t)ft_saturate(ft_quick_rescale(sums[i + 4u], &block->scale[1]));
    }
}

FT_HOT void ft_outputs_depthwise(const uint32_t *window, const ft_block_t *block, int8_t *out) {
    int32_t sums[8];
    ft_sums_depthwise(window, block, sums);
    outputs_of_two(sums, block, out);
}

FT_HOT void ft_outputs_2x4(const uint32_t *window, const ft_block_t *block, int8_t *out) {
    int32_t sums[8];
    ft_sums_2x4(window, block, sums);
    outputs_of_two(sums, block, out);
}

FT_HOT void ft_sweep_1x8(ft_sweep_t *sweep, uint32_t taps) {
    int32_t sums[8];
    int8_t *out = sweep->out;
    ft_quick_t scale = {sweep->multiplier, sweep->offset, sweep->shift};
    (void)taps;
    for (; sweep->rows > 0u; sweep->rows--, sweep->end += sweep->step / 4u, out += sweep->gap) {
        const uint32_t *window = sweep->end - sweep->line / 4u;
        for (; window < sweep->end; window += 8) {
            ft_sums_1x8(window, sweep, sums);
            for (uint32_t i = 0; i < 8u; i++, out += sweep->pitch)
                *out = (int8_t)ft_saturate(ft_quick_rescale_twice(sums[i], &scale));
        }
    }
}

#endif
