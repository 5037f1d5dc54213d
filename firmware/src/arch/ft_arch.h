/* Which processor's twins are compiled: one table, decided at compile time. Plain C is the definition; a twin
 * must equal it bit for bit. */
#ifndef FT_ARCH_H
#define FT_ARCH_H

#include <stdint.h>

#include "../ft_internal.h"

#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define FT_ARCH_ARM_DSP 1 /* Cortex-M4, M7, M33 and what is built like them */
#include "ft_arch_arm_dsp.h"
#else
#define FT_ARCH_ARM_DSP 0
#include "ft_arch_plain.h"
#endif

/* Half of `twice` times the factor plus the zero point, before it is clamped. */
static inline int32_t ft_quick_rescale_twice(int32_t twice, const ft_quick_t *quick) {
    return ft_high(twice, quick->multiplier, quick->offset + (twice >> 31)) >> quick->shift;
}

/* x times the factor plus the zero point, before it is clamped. */
static inline int32_t ft_quick_rescale(int32_t x, const ft_quick_t *quick) {
    return ft_quick_rescale_twice(x * 2, quick);
}

/* Products of a window with one or two channels. A tap is a step through the window in words, and for each channel
 * a pair of weights.
 *
 * Two channels: steps count from the tap before; the number of taps is a multiple of FT_DENSE_TAPS. One channel:
 * steps count from FT_SPARSE_MOVES words behind the tap before, and behind the last tap is one whose weights are 0.
 * Depthwise: steps as with two channels, a multiple of FT_DEPTHWISE_TAPS, and one pair of weights. None is empty. The
 * field order is known to assembly. */
#define FT_DENSE_TAPS 4u
#define FT_DEPTHWISE_TAPS 3u
#define FT_SPARSE_MOVES 6u
typedef struct ft_block {
    const uint32_t *taps, *end;
    int32_t bias[2];
    uint32_t pitch; /* bytes from one output pixel to the next */
    ft_quick_t scale[2];
} ft_block_t;

/* Two channels of four neighbouring pixels: sums, channel after channel; or outputs that take all of int8, the second
 * channel's a byte behind the first's. */
void ft_sums_2x4(const uint32_t *window, const ft_block_t *block, int32_t *sums);
void ft_outputs_2x4(const uint32_t *window, const ft_block_t *block, int8_t *out);

/* The same of two channels of which each has half of the words, and one half of a pair of weights. */
void ft_sums_depthwise(const uint32_t *window, const ft_block_t *block, int32_t *sums);
void ft_outputs_depthwise(const uint32_t *window, const ft_block_t *block, int8_t *out);

/* Four output channels of a dense layer. Weights of the first begin at byte `at`, of each other `pitch` bytes on. The
 * field order is known to assembly. */
typedef struct ft_fan {
    const uint32_t *weights;
    uint32_t at, pitch;
    uint32_t count; /* weights of a channel */
} ft_fan_t;

/* Their four sums of inputs times weights. */
void ft_sums_vector(const int8_t *in, const ft_fan_t *fan, int32_t *sums);

/* One channel on its way over rows of blocks, each of eight neighbouring pixels. The field order is known to
 * assembly. */
typedef struct ft_sweep {
    const uint32_t *end; /* where this row of blocks ends in the window */
    const uint32_t *window;
    const uint32_t *taps;
    uint32_t entry; /* assembly's own */
    int32_t bias[8]; /* eight times the same */
    uint32_t pitch; /* bytes from one output pixel to the next */
    int32_t multiplier;
    int8_t *out;
    int32_t offset, shift; /* with the multiplier, a ft_quick_t */
    uint32_t rows;
    uint32_t step; /* bytes of the window from one row of blocks to the next */
    uint32_t line; /* bytes of the window that a row of blocks takes */
    uint32_t gap;  /* bytes of outputs from the end of a row of blocks to the next */
} ft_sweep_t;

/* Eight sums at `window`; or every output, where the sums are twice as large because the bias and the weights of all
 * `taps` taps are. The sweep is used up. */
void ft_sums_1x8(const uint32_t *window, const ft_sweep_t *sweep, int32_t *sums);
void ft_sweep_1x8(ft_sweep_t *sweep, uint32_t taps);

#endif
