/* Addition of two tensors of one shape, each with a scale and zero point of its own. */
#include "ft_internal.h"

static int shift_ok(int32_t multiplier, int32_t shift) { return multiplier >= 0 && shift <= 0 && shift >= -31; }

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *a = &context->input, *b = &context->input2, *out = &context->output;
    ft_add_t add;
    if (!ft_inside(context->model, context->op.params, FT_ADD_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &add, FT_ADD_BYTES);
    if (!shift_ok(add.multiplier1, add.shift1) || !shift_ok(add.multiplier2, add.shift2)) return FT_ERROR_FORMAT;
    if (!shift_ok(add.multiplier_out, add.shift_out) || add.act_min > add.act_max) return FT_ERROR_FORMAT;
    if (a->height != out->height || a->width != out->width || a->channels != out->channels) return FT_ERROR_FORMAT;
    if (b->height != out->height || b->width != out->width || b->channels != out->channels) return FT_ERROR_FORMAT;
    return FT_OK;
}

FT_HOT static void run(const ft_context_t *context) {
    ft_add_t add;
    ft_read(context->model, context->op.params, &add, FT_ADD_BYTES);
    const int8_t *a = ft_data(context, &context->input), *b = ft_data(context, &context->input2);
    int8_t *out = ft_data(context, &context->output);
    ft_scale_t first = ft_scale(add.multiplier1, add.shift1), second = ft_scale(add.multiplier2, add.shift2);
    ft_scale_t result = ft_scale(add.multiplier_out, add.shift_out);
    int32_t zero_a = context->input.zero_point, zero_b = context->input2.zero_point;
    uint32_t count = ft_tensor_bytes(&context->output);
    for (uint32_t i = 0; i < count; i++) {
        int32_t x = (a[i] - zero_a) * (1 << 20), y = (b[i] - zero_b) * (1 << 20);
        int32_t value = ft_rescale(ft_rescale(x, &first) + ft_rescale(y, &second), &result);
        out[i] = ft_finish(value, context->output.zero_point, add.act_min, add.act_max);
    }
}

const ft_kernel_t ft_kernel_add = {check, run};
