/* Depthwise convolution with every weight stored: [output channel][row][column].
 *
 * The window has two channels in a word, so one pass over it makes the sums of two outputs. Where every input channel
 * has one output, both are wanted; where it has several, each is made by itself from its half of the words. */
#include "ft_conv.h"

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_DEPTHWISE);
    if (status == FT_OK && state.conv.weight_bytes < state.weights * context->output.channels) status = FT_ERROR_FORMAT;
    return status;
}

static uint32_t *taps_end(const ft_conv_state_t *state) {
    uint32_t taps = (state->weights + FT_DEPTHWISE_TAPS - 1u) / FT_DEPTHWISE_TAPS * FT_DEPTHWISE_TAPS;
    return state->taps + FT_DEPTHWISE_STEP * taps;
}

static void begin(ft_conv_state_t *state) { ft_conv_steps(state, FT_DEPTHWISE_STEP, 1u, taps_end(state)); }

/* Put the weights of one or two channels, the first in half `half` of each word, into the taps. */
static void load_weights(const ft_conv_state_t *state, uint32_t channel, uint32_t count, uint32_t half) {
    const uint32_t *weights = ft_words_at(state->context->model, state->conv.weights);
    uint32_t at = channel * state->weights, *to = state->taps + 1;
    for (uint32_t end = at + state->weights; at < end; at++, to += FT_DEPTHWISE_STEP) {
        int32_t first = (int8_t)ft_byte(weights, at), second = 0;
        if (count == 2u) second = (int8_t)ft_byte(weights, at + state->weights);
        *to = half ? ft_pair(0, first) : ft_pair(first, second);
    }
}

static void pass(ft_conv_state_t *state) {
    static const ft_loops_t loops = {ft_sums_depthwise, ft_outputs_depthwise};
    uint32_t channels = state->context->output.channels, times = channels / state->context->input.channels, count;
    for (uint32_t channel = 0; channel < channels; channel += count) {
        uint32_t source = channel / times;
        count = times == 1u && channel + 1u < channels ? 2u : 1u;
        load_weights(state, channel, count, source % 2u);
        const uint32_t *window = state->window + source / 2u * state->plane;
        ft_conv_two(state, &loops, window, taps_end(state), channel, count, source % 2u);
    }
}

static const ft_conv_way_t way = {FT_CONV_DEPTHWISE, begin, pass, NULL};

static void run(ft_context_t *context) { ft_conv_run(context, &way); }

const ft_kernel_t ft_kernel_depthwise = {check, run};
