/* Convolution with every weight stored: [output channel][row][column][input channel]. */
#include "ft_conv.h"

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, 0);
    if (status == FT_OK && state.conv.weight_bytes < state.weights * context->output.channels) status = FT_ERROR_FORMAT;
    return status;
}

/* The end of the taps: their number is rounded up, and those beyond the last weight have weights of 0. */
static uint32_t *taps_end(const ft_conv_state_t *state) {
    uint32_t taps = (uint32_t)state->conv.kernel_height * state->conv.kernel_width * state->pairs;
    return state->taps + 3u * ((taps + FT_DENSE_TAPS - 1u) / FT_DENSE_TAPS * FT_DENSE_TAPS);
}

/* Where each tap finds its input is the same for all channels and passes: written once. */
static void begin(ft_conv_state_t *state) {
    uint32_t *tap = state->taps, *end = taps_end(state), last = 0;
    if (ft_is_vector(state)) return;
    for (uint32_t y = 0; y < state->conv.kernel_height; y++) {
        ft_column_t column = {0u, 0u, 0u};
        for (uint32_t x = 0; x < state->conv.kernel_width; x++, ft_next_column(state, &column)) {
            uint32_t at = y * state->row + column.start + column.position;
            for (uint32_t i = 0; i < state->pairs; i++, at += state->plane, tap += 3) {
                tap[0] = at - last;
                last = at;
            }
        }
    }
    for (; tap < end; tap += 3) tap[0] = tap[1] = tap[2] = 0u;
}

/* Put a channel's weights, which start at byte `at`, into the taps as pairs. */
FT_HOT static void load_weights(const ft_conv_state_t *state, const uint32_t *weights, uint32_t at, uint32_t *to) {
    uint32_t channels = state->context->input.channels, end = at + state->weights;
    if (channels % 4u == 0u) {
        for (weights += at / 4u; at < end; at += 4u, to += 6) ft_widen(*weights++, to, to + 3);
        return;
    }
    while (at < end) {
        for (uint32_t stop = at + channels; at < stop; at += 2u, to += 3) {
            int32_t second = at + 1u < stop ? (int8_t)ft_byte(weights, at + 1u) : 0;
            *to = ft_pair((int8_t)ft_byte(weights, at), second);
        }
        at -= channels % 2u;
    }
}

/* Make a block of outputs of channels that are not quick, or fewer than a block has. */
static void slowly(const ft_block_t *block, const ft_conv_channel_t *to, uint32_t count, const uint32_t *window,
                   uint32_t pixels, int8_t *out) {
    int32_t sums[8];
    ft_sums_2x4(window, block, sums);
    for (uint32_t i = 0; i < count; i++) ft_conv_store(&to[i], sums + 4u * i, pixels, out + i, block->pitch);
}

/* Compute two output channels (`count` 1: only the first is one) for every pixel of the pass. */
FT_HOT static void two_channels(const ft_conv_state_t *state, uint32_t channel, uint32_t count) {
    const ft_tensor_t *out = &state->context->output;
    uint32_t width = out->width, pitch = out->channels, step = state->conv.stride_height * state->row;
    const uint32_t *window = state->window;
    int8_t *to = state->out + channel;
    ft_block_t block = {state->taps, taps_end(state), {0, 0}, pitch, {{0, 0, 0}, {0, 0, 0}}};
    ft_conv_channel_t numbers[2];
    for (uint32_t i = 0; i < 2u; i++) {
        ft_conv_begin(state, channel + (i < count ? i : 0u), &numbers[i]);
        block.bias[i] = numbers[i].bias;
        block.scale[i] = numbers[i].quick;
    }
    int quick = count == 2u && numbers[0].is_quick && numbers[1].is_quick && width >= 4u;
    for (uint32_t y = 0; y < state->height; y++, window += step, to += width * pitch) {
        for (uint32_t x = 0; x < width; x += 4u) {
            /* the last block of a row goes back to be whole: it makes some outputs twice */
            if (width - x < 4u && x > 0u) x = width - 4u;
            if (quick) ft_outputs_2x4(window + x, &block, to + x * pitch);
            else slowly(&block, numbers, count, window + x, width < 4u ? width : 4u, to + x * pitch);
        }
    }
}

/* A dense layer reads each weight once: nothing is worth preparing. */
FT_HOT static void vector(const ft_conv_state_t *state, const uint32_t *weights) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    uint32_t channels = state->context->output.channels, count = state->weights, at = 0;
    ft_conv_channel_t to;
    for (uint32_t channel = 0; channel < channels; channel++) {
        ft_conv_begin(state, channel, &to);
        int32_t sum = to.bias;
        for (uint32_t i = 0; i < count; i++) sum += (int8_t)ft_byte(weights, at++) * in[i];
        ft_conv_store(&to, &sum, 1u, state->out + channel, 1u);
    }
}

static void pass(ft_conv_state_t *state) {
    const uint32_t *weights = ft_words_at(state->context->model, state->conv.weights);
    uint32_t channels = state->context->output.channels;
    if (ft_is_vector(state)) {
        vector(state, weights);
        return;
    }
    for (uint32_t channel = 0; channel < channels; channel += 2u) {
        uint32_t count = channel + 1u < channels ? 2u : 1u;
        for (uint32_t i = 0; i < 2u; i++)
            load_weights(state, weights, (channel + (i < count ? i : 0u)) * state->weights, state->taps + 1u + i);
        two_channels(state, channel, count);
    }
}

static void run(ft_context_t *context) { ft_conv_run(context, 0, begin, pass); }

const ft_kernel_t ft_kernel_conv_dense = {check, run};
