/* What kernels that store every weight share: two output channels of four pixels at a time. */
#include "ft_conv.h"

void ft_conv_steps(const ft_conv_state_t *state, uint32_t step, uint32_t pairs, uint32_t *end) {
    uint32_t *tap = state->taps, last = 0;
    for (uint32_t y = 0; y < state->conv.kernel_height; y++) {
        ft_column_t column = {0u, 0u, 0u};
        for (uint32_t x = 0; x < state->conv.kernel_width; x++, ft_next_column(state, &column)) {
            uint32_t at = y * state->conv.dilation_height * state->row + column.start + column.position;
            for (uint32_t i = 0; i < pairs; i++, at += state->plane, tap += step) {
                tap[0] = at - last;
                last = at;
            }
        }
    }
    while (tap < end) *tap++ = 0u;
}

/* Make a block of outputs of channels that are not quick, or fewer than a block has. */
typedef struct {
    void (*sums)(const uint32_t *window, const ft_block_t *block, int32_t *sums);
    const ft_conv_state_t *state;
    uint32_t from, count, pixels;
    ft_conv_channel_t numbers[2];
} slow_t;

FT_APART static void slowly(const slow_t *slow, const ft_block_t *block, const uint32_t *window, int8_t *out) {
    int32_t sums[8];
    slow->sums(window, block, sums);
    for (uint32_t i = 0; i < slow->count; i++)
        ft_conv_store(slow->state, &slow->numbers[i], sums + 4u * (slow->from + i), slow->pixels, out + i, block->pitch);
}

FT_HOT void ft_conv_two(const ft_conv_state_t *state, const ft_loops_t *loops, const uint32_t *window,
                        const uint32_t *end, uint32_t channel, uint32_t count, uint32_t from) {
    const ft_tensor_t *out = &state->context->output;
    uint32_t width = out->width, pitch = out->channels, step = state->conv.stride_height * state->row;
    int8_t *to = state->out + channel;
    ft_block_t block = {state->taps, end, {0, 0}, pitch, {{0, 0, 0}, {0, 0, 0}}};
    slow_t slow;
    slow.sums = loops->sums;
    slow.state = state;
    slow.from = from;
    slow.count = count;
    slow.pixels = width < 4u ? width : 4u;
    void (*outputs)(const uint32_t *, const ft_block_t *, int8_t *) = loops->outputs;
    for (uint32_t i = 0; i < 2u; i++) {
        ft_conv_begin(state, channel + (i < count ? i : 0u), &slow.numbers[i]);
        block.bias[i] = slow.numbers[i].bias;
        block.scale[i] = slow.numbers[i].quick;
    }
    int quick = count == 2u && slow.numbers[0].is_quick && slow.numbers[1].is_quick && width >= 4u;
    for (uint32_t y = 0; y < state->height; y++, window += step, to += width * pitch) {
        for (uint32_t x = 0; x < width; x += 4u) {
            /* the last block of a row goes back to be whole: it makes some outputs twice */
            if (width - x < 4u && x > 0u) x = width - 4u;
            if (quick) outputs(window + x, &block, to + x * pitch);
            else slowly(&slow, &block, window + x, to + x * pitch);
        }
    }
}
