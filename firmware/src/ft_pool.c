/* Largest value or mean of the pixels under a window; padding counts as nothing. */
#include "ft_internal.h"

/* Windows start inside the image and reach into it: each is of one pixel at least. */
static int inside(uint32_t outputs, uint32_t stride, uint32_t kernel, uint32_t pad, uint32_t side) {
    return stride > 0u && pad < kernel && (outputs - 1u) * stride < side + pad;
}

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    ft_pool_t pool;
    if (!ft_inside(context->model, context->op.params, FT_POOL_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &pool, FT_POOL_BYTES);
    if (!inside(out->height, pool.stride_height, pool.kernel_height, pool.pad_top, in->height)) return FT_ERROR_FORMAT;
    if (!inside(out->width, pool.stride_width, pool.kernel_width, pool.pad_left, in->width)) return FT_ERROR_FORMAT;
    if (pool.act_min > pool.act_max || in->channels != out->channels || !ft_whole(context)) return FT_ERROR_FORMAT;
    return FT_OK;
}

/* The pixels that a window meets. */
typedef struct {
    uint32_t begin, count;
} span_t;

static span_t meet(uint32_t output, uint32_t stride, uint32_t kernel, uint32_t pad, uint32_t side) {
    uint32_t begin = output * stride, end = begin + kernel - pad;
    begin = begin > pad ? begin - pad : 0u;
    span_t span = {begin, (end < side ? end : side) - begin};
    return span;
}

static int32_t mean(int32_t sum, int32_t count) {
    return sum < 0 ? -((count / 2 - sum) / count) : (sum + count / 2) / count;
}

static int32_t pooled(const int8_t *from, uint32_t rows, uint32_t columns, const ft_tensor_t *in, int average) {
    int32_t sum = 0, largest = -128;
    for (uint32_t y = 0; y < rows; y++, from += (in->width - columns) * in->channels) {
        for (uint32_t x = 0; x < columns; x++, from += in->channels) {
            sum += *from;
            if (*from > largest) largest = *from;
        }
    }
    return average ? mean(sum, (int32_t)(rows * columns)) : largest;
}

static void run(ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    int8_t *to = ft_data(context, out);
    ft_pool_t pool;
    ft_read(context->model, context->op.params, &pool, FT_POOL_BYTES);
    for (uint32_t y = 0; y < out->height; y++) {
        span_t rows = meet(y, pool.stride_height, pool.kernel_height, pool.pad_top, in->height);
        for (uint32_t x = 0; x < out->width; x++) {
            span_t columns = meet(x, pool.stride_width, pool.kernel_width, pool.pad_left, in->width);
            const int8_t *from = ft_row(context, in, rows.begin) + columns.begin * in->channels;
            for (uint32_t c = 0; c < in->channels; c++)
                *to++ = ft_finish(pooled(from + c, rows.count, columns.count, in, pool.average), 0, pool.act_min, pool.act_max);
        }
    }
    context->row = out->height;
}

const ft_kernel_t ft_kernel_pool = {check, run};
