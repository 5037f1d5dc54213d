/* Computing one output channel from its non-zero weights, however they were stored. */
#include "ft_conv.h"

static uint32_t capacity(const ft_conv_state_t *state) {
    return state->conv.max_taps + state->conv.max_taps % FT_SPARSE_TAPS;
}

/* The list takes the upper half of the scratch: taps are written from the lower end and never catch up with it. */
uint32_t *ft_conv_list(const ft_conv_state_t *state) {
    return ft_is_vector(state) ? state->taps : state->taps + capacity(state);
}

/* Turn positions in weight space into steps through the window; two weights that meet one word become one tap. */
FT_HOT static uint32_t *make_taps(const ft_conv_state_t *state, uint32_t count) {
    const uint32_t *from = ft_conv_list(state);
    uint32_t channels = state->context->input.channels, end = channels, last = 0, base = 0, x = 0, y = 0;
    uint32_t *to = state->taps;
    ft_column_t column = {0u, 0u, 0u};
    for (const uint32_t *stop = from + count; from < stop; from++) {
        uint32_t position = *from >> 8;
        for (; position >= end; end += channels) {
            if (++x < state->conv.kernel_width) ft_next_column(state, &column);
            else x = column.phase = column.start = column.position = 0u, y++;
            base = y * state->row + column.start + column.position;
        }
        uint32_t channel = position - (end - channels), at = base + channel / 2u * state->plane;
        int32_t weight = (int8_t)*from;
        uint32_t pair = channel % 2u ? (uint32_t)weight << 16 : (uint32_t)weight & 0xFFFFu;
        if (at == last && to > state->taps) {
            to[-1] |= pair;
            continue;
        }
        *to++ = at - last;
        *to++ = pair;
        last = at;
    }
    for (; (uint32_t)(to - state->taps) % (2u * FT_SPARSE_TAPS) != 0u; *to++ = 0u) { }
    return to;
}

static void vector(const ft_conv_state_t *state, uint32_t channel, uint32_t count) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    ft_conv_channel_t to;
    ft_conv_begin(state, channel, &to);
    int32_t sum = to.bias;
    for (uint32_t i = 0; i < count; i++) sum += (int8_t)state->taps[i] * in[state->taps[i] >> 8];
    ft_conv_store(&to, &sum, 1u, state->out + channel, 1u);
}

FT_HOT void ft_conv_taps(ft_conv_state_t *state, uint32_t channel, uint32_t count) {
    const ft_tensor_t *out = &state->context->output;
    if (ft_is_vector(state)) {
        vector(state, channel, count);
        return;
    }
    const uint32_t *end = make_taps(state, count);
    ft_conv_channel_t to;
    ft_conv_begin(state, channel, &to);
    for (uint32_t y = 0; y < state->height; y++) {
        const uint32_t *window = state->window + y * state->conv.stride_height * state->row;
        for (uint32_t x = 0; x < out->width; x += 8u) {
            int32_t sums[8];
            uint32_t pixels = out->width - x;
            if (pixels < 8u && x > 0u) x = out->width - 8u, pixels = 8u;
            if (pixels > 8u) pixels = 8u;
            for (uint32_t i = 0; i < 8u; i++) sums[i] = to.bias;
            if (end > state->taps) ft_dot_1x8(state->taps, end, window + x, sums);
            ft_conv_store(&to, sums, pixels, state->out + (y * out->width + x) * out->channels + channel, out->channels);
        }
    }
}
