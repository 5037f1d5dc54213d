/* Convolution with every weight stored: [output channel][row][column][input channel]. */
#include "ft_conv.h"

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_DENSE);
    if (status == FT_OK && state.conv.weight_bytes < state.weights * context->output.channels) status = FT_ERROR_FORMAT;
    return status;
}

/* The end of the taps: their number is rounded up, and those beyond the last weight have weights of 0. */
static uint32_t *taps_end(const ft_conv_state_t *state) {
    uint32_t taps = (uint32_t)state->conv.kernel_height * state->conv.kernel_width * state->pairs;
    return state->taps + FT_DENSE_STEP * ((taps + FT_DENSE_TAPS - 1u) / FT_DENSE_TAPS * FT_DENSE_TAPS);
}

/* Where each tap finds its input is the same for all channels and passes: written once. */
static void begin(ft_conv_state_t *state) { ft_conv_steps(state, FT_DENSE_STEP, state->pairs, taps_end(state)); }

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

/* The small way for a network that has convolutions as well; ft_vector.c is the fast one. */
FT_HOT static void vector(ft_conv_state_t *state) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    const uint32_t *weights = ft_words_at(state->context->model, state->conv.weights);
    uint32_t channels = state->context->output.channels, count = state->weights, at = 0;
    for (uint32_t channel = 0; channel < channels; channel++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < count; i++) sum += (int8_t)ft_byte(weights, at++) * in[i];
        ft_vector_store(state, channel, sum);
    }
}

static void pass(ft_conv_state_t *state) {
    static const ft_loops_t loops = {ft_sums_2x4, ft_outputs_2x4};
    const uint32_t *weights = ft_words_at(state->context->model, state->conv.weights);
    uint32_t channels = state->context->output.channels;
    for (uint32_t channel = 0; channel < channels; channel += 2u) {
        uint32_t count = channel + 1u < channels ? 2u : 1u;
        for (uint32_t i = 0; i < 2u; i++)
            load_weights(state, weights, (channel + (i < count ? i : 0u)) * state->weights, state->taps + 1u + i);
        ft_conv_two(state, &loops, state->window, taps_end(state), channel, count, 0u);
    }
}

static const ft_conv_way_t way = {FT_CONV_DENSE, begin, pass, vector};

static void run(ft_context_t *context) { ft_conv_run(context, &way); }

const ft_kernel_t ft_kernel_conv_dense = {check, run};
