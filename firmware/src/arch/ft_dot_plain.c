/* The inner loops of convolutions in plain C: the definition that every twin equals. */
#include "../ft_conv.h"

#if !FT_ARCH_ARM_DSP

/* Sums are eight variables and no array, so that a compiler keeps them in registers. */
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define STORE(i) sums[i] = sum##i;
#define LOW(word) ((int16_t)(word))
#define HIGH(word) ((int16_t)((word) >> 16))

FT_HOT void ft_sums_1x8(const uint32_t *window, const ft_sweep_t *sweep, int32_t *sums) {
#define BEGIN(i) int32_t sum##i = sweep->bias[i];
#define ADD_LOW(i) sum##i += LOW(window[i]) * low;
#define ADD_HIGH(i) sum##i += HIGH(window[i]) * high;
    EACH(BEGIN)
    for (const uint32_t *tap = sweep->taps; tap[1] != 0u; tap += 2, window += FT_SPARSE_MOVES) {
        int32_t low = LOW(tap[1]), high = HIGH(tap[1]);
        window += (int32_t)tap[0];
        if (low != 0) { EACH(ADD_LOW) }
        if (high != 0) { EACH(ADD_HIGH) }
    }
    EACH(STORE)
}

/* Four pixels of each of two channels: sums 0 to 3 and 4 to 7. */
#define BEGIN_TWO(i) int32_t sum##i = block->bias[i / 4];

FT_HOT void ft_sums_2x4(const uint32_t *window, const ft_block_t *block, int32_t *sums) {
#define ADD_BOTH(i) sum##i += LOW(window[i % 4]) * (i < 4 ? low : low2) + HIGH(window[i % 4]) * (i < 4 ? high : high2);
    EACH(BEGIN_TWO)
    for (const uint32_t *tap = block->taps; tap < block->end; tap += 3) {
        int32_t low = LOW(tap[1]), high = HIGH(tap[1]), low2 = LOW(tap[2]), high2 = HIGH(tap[2]);
        window += (int32_t)tap[0];
        EACH(ADD_BOTH)
    }
    EACH(STORE)
}

FT_HOT void ft_sums_depthwise(const uint32_t *window, const ft_block_t *block, int32_t *sums) {
#define ADD_HALF(i) sum##i += i < 4 ? LOW(window[i % 4]) * low : HIGH(window[i % 4]) * high;
    EACH(BEGIN_TWO)
    for (const uint32_t *tap = block->taps; tap < block->end; tap += 2) {
        int32_t low = LOW(tap[1]), high = HIGH(tap[1]);
        window += (int32_t)tap[0];
        EACH(ADD_HALF)
    }
    EACH(STORE)
}

FT_HOT void ft_sums_vector(const int8_t *in, const ft_fan_t *fan, int32_t *sums) {
    uint32_t i = 0, count = fan->count, pitch = fan->pitch, at = fan->at;
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#if FT_MODEL_WORDS_ONLY
    /* rows of whole words: each word is loaded once */
    for (const uint32_t *row = fan->weights + at / 4u; count % 4u == 0u && i < count; row++) {
        uint32_t one = row[0], two = row[pitch / 4u], three = row[pitch / 2u], four = row[pitch / 4u * 3u];
        for (uint32_t end = i + 4u; i < end; i++, one >>= 8, two >>= 8, three >>= 8, four >>= 8) {
            sum0 += in[i] * (int8_t)one;
            sum1 += in[i] * (int8_t)two;
            sum2 += in[i] * (int8_t)three;
            sum3 += in[i] * (int8_t)four;
        }
    }
#endif
    for (; i < count; i++, at++) {
        sum0 += in[i] * (int8_t)ft_byte(fan->weights, at);
        sum1 += in[i] * (int8_t)ft_byte(fan->weights, at + pitch);
        sum2 += in[i] * (int8_t)ft_byte(fan->weights, at + 2u * pitch);
        sum3 += in[i] * (int8_t)ft_byte(fan->weights, at + 3u * pitch);
    }
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
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
