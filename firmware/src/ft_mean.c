/* Mean over height and width: a sum, rescaled once. The division is part of the multiplier. */
#include "ft_internal.h"

static ft_status_t check(const ft_context_t *context) {
    ft_mean_t mean;
    if (!ft_inside(context->model, context->op.params, FT_MEAN_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &mean, FT_MEAN_BYTES);
    if (mean.multiplier < 0 || mean.shift < -31 || mean.shift > 30) return FT_ERROR_FORMAT;
    if ((uint32_t)context->input.height * context->input.width > (1u << 22)) return FT_ERROR_FORMAT;
    if (context->output.height != 1u || context->output.width != 1u) return FT_ERROR_FORMAT;
    if (!ft_whole(context)) return FT_ERROR_FORMAT;
    return context->output.channels == context->input.channels ? FT_OK : FT_ERROR_FORMAT;
}

static void run(ft_context_t *context) {
    ft_mean_t mean;
    ft_read(context->model, context->op.params, &mean, FT_MEAN_BYTES);
    ft_scale_t scale = ft_scale(mean.multiplier, mean.shift);
    uint32_t channels = context->input.channels;
    int32_t pixels = (int32_t)context->input.height * context->input.width;
    for (uint32_t c = 0; c < channels; c++) {
        const int8_t *in = ft_data(context, &context->input) + c;
        int32_t sum = -pixels * context->input.zero_point;
        for (int32_t i = 0; i < pixels; i++, in += channels) sum += *in;
        sum = ft_rescale(sum, &scale);
        ft_data(context, &context->output)[c] = ft_finish(sum, context->output.zero_point, -128, 127);
    }
    context->row = context->output.height;
}

const ft_kernel_t ft_kernel_mean = {check, run};
