/* Computing one output channel from its non-zero weights, however they were stored.
 *
 * The scratch holds where each cell (row and column of the kernel) begins in the window, then the channel's taps. */
#include "ft_conv.h"

void ft_conv_cells(ft_conv_state_t *state) {
    uint32_t *cell = ft_cells(state);
    for (uint32_t y = 0; y < state->conv.kernel_height; y++) {
        ft_column_t column = {0u, 0u, 0u};
        for (uint32_t x = 0; x < state->conv.kernel_width; x++, ft_next_column(state, &column))
            *cell++ = y * state->conv.dilation_height * state->row + column.start + column.position;
    }
}

/* Halve the weights of all taps. */
static void halve(uint32_t *tap, const uint32_t *end) {
    for (; tap < end; tap += 2) tap[1] = ft_pair((int16_t)tap[1] / 2, (int16_t)(tap[1] >> 16) / 2);
}

/* A channel without weights has one output everywhere. */
static void constant(const ft_conv_state_t *state, int8_t *out) {
    uint32_t pitch = state->sweep.pitch, pixels = state->height * state->context->output.width;
    ft_conv_store(state, &state->numbers, &state->numbers.bias, 1u, out, 1u);
    int8_t value = *out;
    for (; pixels >= 4u; pixels -= 4u, out += 4u * pitch)
        out[0] = out[pitch] = out[2u * pitch] = out[3u * pitch] = value;
    for (; pixels > 0u; pixels--, out += pitch) *out = value;
}

/* Channels that are not quick, and images that are narrower than a block. */
FT_APART static void slowly(const ft_conv_state_t *state, int8_t *out) {
    int32_t sums[8];
    const ft_sweep_t *sweep = &state->sweep;
    uint32_t width = state->context->output.width, pitch = sweep->pitch, count = width < 8u ? width : 8u;
    const uint32_t *window = state->window;
    for (uint32_t y = 0; y < state->height; y++, window += sweep->step / 4u, out += width * pitch) {
        for (uint32_t x = 0; x < width; x += 8u) {
            /* the last block of a row goes back to be whole: it makes some outputs twice */
            if (width - x < 8u && x > 0u) x = width - 8u;
            ft_sums_1x8(window + x, sweep, sums);
            ft_conv_store(state, &state->numbers, sums, count, out + x * pitch, pitch);
        }
    }
}

/* Go over `width` pixels of every row from pixel `x` on. */
static inline void go_over(ft_conv_state_t *state, int8_t *out, uint32_t x, uint32_t width, uint32_t taps) {
    ft_sweep_t *sweep = &state->sweep;
    sweep->rows = state->height;
    sweep->window = state->window + x;
    sweep->end = sweep->window + width;
    sweep->out = out + x * sweep->pitch;
    sweep->line = 4u * width;
    sweep->gap = (state->context->output.width - width) * sweep->pitch;
    ft_sweep_1x8(sweep, taps);
}

FT_HOT void ft_conv_taps(ft_conv_state_t *state, uint32_t channel, uint32_t *end) {
    ft_conv_channel_t *numbers = &state->numbers;
    uint32_t width = state->context->output.width, *first = ft_first_tap(state), taps = (uint32_t)(end - first) / 2u;
    int8_t *out = state->out + channel;
    ft_conv_begin(state, channel, numbers);
    int is_swept = numbers->is_quick && width >= 8u;
    int32_t bias = is_swept ? 2 * numbers->bias : numbers->bias;
    for (uint32_t i = 0; i < 8u; i++) state->sweep.bias[i] = bias;
    if (!is_swept) halve(first, end);
    if (taps == 0u) {
        constant(state, out);
    } else {
        end[0] = end[1] = 0u;
        if (!is_swept) {
            slowly(state, out);
            return;
        }
        state->sweep.multiplier = numbers->quick.multiplier;
        state->sweep.offset = numbers->quick.offset;
        state->sweep.shift = numbers->quick.shift;
        go_over(state, out, 0u, width & ~7u, taps);
        /* the last block of a row goes back to be whole: it makes some outputs twice */
        if (width % 8u != 0u) go_over(state, out, width - 8u, 8u, taps);
    }
}
