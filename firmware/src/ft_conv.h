/* What the convolution kernels share: the window over the input, and the way weights meet it.
 *
 * The window holds the input rows that some output rows need, padded, so that no kernel ever tests a border. Its
 * words are pairs of neighbouring channels of one pixel, each channel 16 bits wide. Pixels that neighbouring
 * outputs multiply with the same weight lie in neighbouring words: a row is one plane for each channel pair, and
 * a plane has the columns 0, s, 2s.. first, then 1, s+1.., for a stride of s. */
#ifndef FT_CONV_H
#define FT_CONV_H

#include "fedtiny/ft_config.h"

#if FT_FAST_CONV && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif

#include "arch/ft_arch.h"
#include "ft_internal.h"

/* One output channel's numbers. */
typedef struct ft_conv_channel {
    int32_t bias, multiplier, shift;
    ft_quick_t quick;
    int is_quick; /* `quick` says the same, the zero point included, and outputs take all of int8 */
} ft_conv_channel_t;

/* One convolution in the making; sizes of the window are in words. */
typedef struct ft_conv_state {
    const ft_context_t *context;
    ft_conv_t conv;
    uint32_t fan;       /* input channels that one output channel reads */
    uint32_t weights;   /* of one output channel */
    int is_vector;      /* a dense layer: one pixel in, one pixel out; it reads its input in place and has no scratch */
    uint32_t pairs;     /* channel pairs of the input */
    uint32_t positions; /* of the first column phase; those after `last` have one less */
    uint32_t last;
    uint32_t phases; /* column phases that some weight may meet */
    uint32_t tall;   /* input rows that an output row needs: the kernel's, and those that dilation leaves out */
    uint32_t plane;  /* words of one channel pair of one row */
    uint32_t row;    /* words of one row */
    int32_t most;    /* quick channels have biases below it; 0 where no channel is quick */
    uint32_t *taps;  /* scratch for weights */
    uint32_t *window;
    int8_t *out;     /* where the pass writes */
    uint32_t height; /* output rows of this pass */
    ft_conv_channel_t numbers; /* where sparse, those of the channel in the making, and how it is made */
    ft_sweep_t sweep;
} ft_conv_state_t;

/* How weights lie in scratch: see tap_words in ft_conv.c. */
typedef enum ft_conv_kind { FT_CONV_DENSE, FT_CONV_SPARSE, FT_CONV_DEPTHWISE } ft_conv_kind_t;

/* Check everything but the weight stream. */
ft_status_t ft_conv_check(const ft_context_t *context, ft_conv_state_t *state, ft_conv_kind_t kind);

/* What a kernel does: `begin` before the first output rows, `pass` for some of them; `vector` is all of a dense layer. */
typedef struct ft_conv_way {
    ft_conv_kind_t kind;
    void (*begin)(ft_conv_state_t *state);
    void (*pass)(ft_conv_state_t *state);
    void (*vector)(ft_conv_state_t *state);
} ft_conv_way_t;

/* Take in the rows that are there, and make the next output rows if they are enough for them. */
void ft_conv_run(ft_context_t *context, const ft_conv_way_t *way);

/* Biases that are quick are nearer to 0, so that sums stay below 2^30. */
static inline int32_t ft_quick_bias(const ft_conv_t *conv, uint32_t weights) {
    if (conv->act_min != -128 || conv->act_max != 127 || weights >= 1u << 16) return 0;
    return (1 << 30) - (int32_t)weights * 16384;
}

/* A column of the padded input: `start + position` words into a plane. */
typedef struct ft_column {
    uint32_t phase, start, position;
} ft_column_t;

static inline uint32_t ft_positions(const ft_conv_state_t *state, uint32_t phase) {
    return state->positions - (phase > state->last ? 1u : 0u);
}

/* Go on to the column that the next weight of a kernel's row meets. */
static inline void ft_next_column(const ft_conv_state_t *state, ft_column_t *column) {
    for (uint32_t i = 0; i < state->conv.dilation_width; i++) {
        column->start += ft_positions(state, column->phase);
        if (++column->phase < state->conv.stride_width) continue;
        column->phase = column->start = 0u;
        column->position++;
    }
}

/* The position of the lowest set bit of a word that is not 0. */
static inline uint32_t ft_lowest_bit(uint32_t bits) {
#if defined(__ARM_FEATURE_CLZ) || defined(__x86_64__)
    return (uint32_t)__builtin_ctz(bits);
#else
    uint32_t position = 0;
    for (; (bits & 0xFu) == 0u; bits >>= 4) position += 4u;
    for (; (bits & 1u) == 0u; bits >>= 1) position++;
    return position;
#endif
}

/* Words until the weights of the next tap: a step, then one pair or two of weights. */
#define FT_DEPTHWISE_STEP 2u
#define FT_DENSE_STEP 3u

/* Write the steps from tap to tap, `step` words apart, over planes of as many channel pairs as given. */
void ft_conv_steps(const ft_conv_state_t *state, uint32_t step, uint32_t pairs, uint32_t *end);

/* The inner loops of a kernel that makes two channels of four pixels at once: as sums, or finished. */
typedef struct ft_loops {
    void (*sums)(const uint32_t *window, const ft_block_t *block, int32_t *sums);
    void (*outputs)(const uint32_t *window, const ft_block_t *block, int8_t *out);
} ft_loops_t;

/* Compute `count` output channels (1: what the loops make in place `from`, 0 or 1) for every pixel of the pass. */
void ft_conv_two(const ft_conv_state_t *state, const ft_loops_t *loops, const uint32_t *window, const uint32_t *end,
                 uint32_t channel, uint32_t count, uint32_t from);

void ft_conv_begin(const ft_conv_state_t *state, uint32_t channel, ft_conv_channel_t *to);

/* Turn finished sums into outputs, `pitch` bytes apart. */
void ft_conv_store(const ft_conv_state_t *state, const ft_conv_channel_t *channel, const int32_t *sums, uint32_t count,
                   int8_t *out, uint32_t pitch);

/* The same of a dense layer's output channel, whose sum lacks its bias. */
void ft_vector_store(const ft_conv_state_t *state, uint32_t channel, int32_t sum);

/* Of the sparse kernels: what runs before the first pass. */
void ft_conv_cells(ft_conv_state_t *state);

/* Sparse output channels while their non-zero weights become taps, whose weights are twice as large. */
typedef struct ft_taps {
    uint32_t *to;
    const uint32_t *cell, *end; /* where the next cell (row and column of the kernel) begins in the window */
    uint32_t base;              /* and where this one does */
    uint32_t channel, limit;    /* the input channel of the next weight; limit and more are in later cells */
    uint32_t fan, plane;
    uint32_t left; /* where the tap before leaves the window */
} ft_taps_t;

/* Where the cells begin in the scratch: before the taps. */
static inline uint32_t *ft_cells(const ft_conv_state_t *state) { return state->taps; }

static inline uint32_t *ft_first_tap(const ft_conv_state_t *state) {
    return state->taps + (uint32_t)state->conv.kernel_height * state->conv.kernel_width;
}

/* Where the layer begins. */
static inline ft_taps_t ft_taps(ft_conv_state_t *state) {
    ft_sweep_t *sweep = &state->sweep;
    sweep->taps = ft_first_tap(state);
    sweep->pitch = state->context->output.channels;
    sweep->step = 4u * state->conv.stride_height * state->row;
    uint32_t fan = state->fan;
    ft_taps_t taps = {NULL, NULL, ft_first_tap(state), 0u, fan, fan, fan, state->plane, 0u};
    return taps;
}

/* Begin an output channel, which follows the one before. */
static inline void ft_begin_taps(const ft_conv_state_t *state, uint32_t channel, ft_taps_t *taps) {
    uint32_t groups = state->conv.groups;
    taps->to = ft_first_tap(state);
    taps->cell = ft_cells(state);
    taps->left = 0u;
    if (groups == 1u) return;
    uint32_t limit = (channel / (state->context->output.channels / groups) + 1u) * taps->fan;
    taps->channel += limit - taps->limit;
    taps->limit = limit;
}

/* Whether the next weight is one of this output channel, and if so, its cell. */
static inline int ft_find_cell(ft_taps_t *taps) {
    for (; FT_RARELY(taps->channel >= taps->limit); taps->channel -= taps->fan) {
        if (taps->cell == taps->end) return 0;
        taps->base = *taps->cell++;
    }
    return 1;
}

/* Add a weight; two that meet one word become one tap. */
static inline void ft_put_tap(ft_taps_t *taps, int32_t value) {
    uint32_t at = taps->base + taps->channel / 2u * taps->plane, pair = (uint32_t)value << 17;
    if (taps->channel % 2u == 0u) {
        pair >>= 16;
    } else if (at + FT_SPARSE_MOVES == taps->left) {
        taps->to[-1] |= pair;
        return;
    }
    taps->to[0] = at - taps->left;
    taps->to[1] = pair;
    taps->to += 2;
    taps->left = at + FT_SPARSE_MOVES;
}

/* Compute the output channel whose taps end at `end`; one more fits behind them. */
void ft_conv_taps(ft_conv_state_t *state, uint32_t channel, uint32_t *end);

#endif
