/* Nearest neighbour: the model says for every output row and column where it comes from. */
#include "ft_internal.h"

/* Entry `index` of a list of 16-bit numbers. */
static uint32_t entry(const ft_context_t *context, uint32_t index) {
    const uint32_t *list = ft_words_at(context->model, context->op.params);
    return ft_byte(list, 2u * index) | (uint32_t)ft_byte(list, 2u * index + 1u) << 8;
}

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    uint32_t rows = out->height, count = rows + out->width;
    if (!ft_inside(context->model, context->op.params, 2u * count)) return FT_ERROR_FORMAT;
    for (uint32_t i = 0; i < count; i++)
        if (entry(context, i) >= (i < rows ? in->height : in->width)) return FT_ERROR_FORMAT;
    return in->channels == out->channels && ft_whole(context) ? FT_OK : FT_ERROR_FORMAT;
}

static void run(ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    int8_t *to = ft_data(context, out);
    for (uint32_t y = 0; y < out->height; y++) {
        const int8_t *row = ft_row(context, in, entry(context, y));
        for (uint32_t x = 0; x < out->width; x++, to += in->channels)
            ft_copy(to, row + entry(context, out->height + x) * in->channels, in->channels);
    }
    context->row = out->height;
}

const ft_kernel_t ft_kernel_resize = {check, run};
