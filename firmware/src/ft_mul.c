/* Product of two tensors; a side of 1 is repeated. */
#include "ft_internal.h"

/* Bytes from one element to the next along the three sides: none where a side is repeated. */
typedef struct {
    uint32_t row, column, channel;
} steps_t;

static int fits(const ft_tensor_t *in, const ft_tensor_t *out) {
    return (in->height == out->height || in->height == 1u) && (in->width == out->width || in->width == 1u) &&
           (in->channels == out->channels || in->channels == 1u);
}

static ft_status_t check(const ft_context_t *context) {
    ft_mul_t mul;
    if (!ft_inside(context->model, context->op.params, FT_MUL_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &mul, FT_MUL_BYTES);
    if (mul.multiplier < 0 || mul.shift < -31 || mul.shift > FT_MAX_PRODUCT_SHIFT || mul.act_min > mul.act_max)
        return FT_ERROR_FORMAT;
    if (!fits(&context->input, &context->output) || !fits(&context->input2, &context->output)) return FT_ERROR_FORMAT;
    return ft_whole(context) ? FT_OK : FT_ERROR_FORMAT;
}

static steps_t steps(const ft_tensor_t *in) {
    uint32_t channels = in->channels;
    steps_t found = {in->height > 1u ? in->width * channels : 0u, in->width > 1u ? channels : 0u, channels > 1u};
    return found;
}

static void run(ft_context_t *context) {
    const ft_tensor_t *out = &context->output;
    steps_t step_a = steps(&context->input), step_b = steps(&context->input2);
    int32_t zero_a = context->input.zero_point, zero_b = context->input2.zero_point;
    int8_t *to = ft_data(context, out);
    ft_mul_t mul;
    ft_read(context->model, context->op.params, &mul, FT_MUL_BYTES);
    ft_scale_t scale = ft_scale(mul.multiplier, mul.shift);
    for (uint32_t y = 0; y < out->height; y++) {
        const int8_t *row_a = ft_data(context, &context->input) + y * step_a.row;
        const int8_t *row_b = ft_data(context, &context->input2) + y * step_b.row;
        for (uint32_t x = 0; x < out->width; x++, row_a += step_a.column, row_b += step_b.column) {
            const int8_t *a = row_a, *b = row_b;
            for (uint32_t c = 0; c < out->channels; c++, a += step_a.channel, b += step_b.channel) {
                int32_t product = ft_rescale((*a - zero_a) * (*b - zero_b), &scale);
                *to++ = ft_finish(product, out->zero_point, mul.act_min, mul.act_max);
            }
        }
    }
    context->row = out->height;
}

const ft_kernel_t ft_kernel_mul = {check, run};
