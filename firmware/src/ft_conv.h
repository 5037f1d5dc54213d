/* What the convolution kernels share: the window over the input, and the way weights meet it. */
#ifndef FT_CONV_H
#define FT_CONV_H

#include "fedtiny/ft_config.h"

#if FT_FAST_CONV && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif

#include "ft_internal.h"

/* One output row in the making. The window's row k starts row[k] bytes after `rows`; padding, if any, is
 * already there, so that no kernel ever tests a border. */
typedef struct ft_conv_row {
    const ft_context_t *context;
    ft_conv_t conv;
    const int8_t *rows;
    uint32_t row[FT_MAX_KERNEL_HEIGHT];
    uint32_t run;   /* bytes of one window row: kernel width times channels */
    uint32_t step;  /* bytes from one output pixel's window to the next one's */
    uint32_t *taps; /* scratch for one output channel's non-zero weights; unused where dense */
    int8_t *out;    /* the output row */
} ft_conv_row_t;

typedef void (*ft_conv_row_fn)(const ft_conv_row_t *row);

/* Check everything but the weight stream. */
ft_status_t ft_conv_check(const ft_context_t *context, ft_conv_t *conv, uint32_t *weight_count);

/* Run `fn` for every output row. */
void ft_conv_run(const ft_context_t *context, ft_conv_row_fn fn);

/* A tap is one non-zero weight: where its input lies in the window (24 bits) and its value (8 bits). */
static inline uint32_t ft_tap(uint32_t offset, uint8_t value) { return (offset << 8) | value; }

/* Compute one output channel of one output row from its `count` taps. */
void ft_conv_taps(const ft_conv_row_t *row, uint32_t channel, uint32_t count);

/* One output channel's numbers, and where its outputs of the row go. */
typedef struct ft_conv_channel {
    int32_t bias;
    ft_scale_t scale;
    int32_t zero_point, low, high;
    int8_t *out;
    uint32_t pitch; /* bytes from one output pixel to the next */
} ft_conv_channel_t;

void ft_conv_begin(const ft_conv_row_t *row, uint32_t channel, ft_conv_channel_t *to);

/* Turn a finished sum into the next output of the channel. */
static inline void ft_conv_store(ft_conv_channel_t *channel, int32_t sum) {
    int32_t value = ft_rescale(sum, &channel->scale);
    *channel->out = ft_finish(value, channel->zero_point, channel->low, channel->high);
    channel->out += channel->pitch;
}

#endif
