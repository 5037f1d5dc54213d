/* Dense layers with every weight stored, [output channel][input channel], four output channels at a time.
 *
 * What a network of such layers links instead of convolutions: there is no window and no scratch. */
#include "ft_conv.h"

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_DENSE);
    if (status != FT_OK) return status;
    if (!state.is_vector || state.conv.weight_bytes < state.weights * context->output.channels) return FT_ERROR_FORMAT;
    return FT_OK;
}

/* Turn sums, which lack their biases, into outputs from `channel` on: as ft_vector_store, which does what is not quick. */
FT_HOT static inline void store(const ft_conv_state_t *state, uint32_t channel, const int32_t *sums, const int32_t *end) {
    const ft_model_t *model = state->context->model;
    const uint32_t *biases = ft_words_at(model, state->conv.bias), *multipliers = ft_words_at(model, state->conv.multiplier);
    const uint32_t *shifts = ft_words_at(model, state->conv.shift);
    int8_t *out = ft_data(state->context, &state->context->output);
    for (; sums < end; sums++, channel++) {
        ft_quick_t quick;
        int32_t bias = (int32_t)biases[channel], shift = (int8_t)ft_byte(shifts, channel);
        int is_quick = ft_quick(&quick, (int32_t)multipliers[channel], shift, state->context->output.zero_point);
        if (FT_RARELY(!is_quick || bias >= state->most || bias <= -state->most)) ft_vector_store(state, channel, *sums);
        else out[channel] = (int8_t)ft_saturate(ft_quick_rescale(*sums + bias, &quick));
    }
}

FT_HOT static void run(ft_context_t *context) {
    const int8_t *in = ft_data(context, &context->input);
    uint32_t channels = context->output.channels, count = context->input.channels, step = channels < 4u ? 1u : 4u;
    int32_t sums[4];
    ft_conv_state_t state;
    state.context = context;
    ft_read(context->model, context->op.params, &state.conv, FT_CONV_BYTES);
    state.most = ft_quick_bias(&state.conv, count);
    ft_fan_t fan = {ft_words_at(context->model, state.conv.weights), 0u, step == 1u ? 0u : count, count};
    for (uint32_t channel = 0; channel < channels; channel += step) {
        /* the last channels go back to be four: some are made twice */
        if (channels - channel < step) channel = channels - step;
        fan.at = channel * count;
        ft_sums_vector(in, &fan, sums);
        store(&state, channel, sums, sums + step);
    }
    context->row++;
}

const ft_kernel_t ft_kernel_vector = {check, run};
