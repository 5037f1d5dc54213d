/* Any function of one number: a table of the 256 answers, in the order of the input's bytes. */
#include "ft_internal.h"

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    if (!ft_inside(context->model, context->op.params, 256u) || context->op.streamed) return FT_ERROR_FORMAT;
    if (in->height != out->height || in->width != out->width || in->channels != out->channels) return FT_ERROR_FORMAT;
    return FT_OK;
}

static void run(ft_context_t *context) {
    const uint32_t *table = ft_words_at(context->model, context->op.params);
    ft_rows_t rows = ft_next_rows(context);
    const int8_t *in = ft_row(context, &context->input, rows.first);
    int8_t *out = ft_row(context, &context->output, rows.first);
    for (uint32_t i = 0; i < rows.elements; i++) out[i] = (int8_t)ft_byte(table, (uint8_t)in[i]);
}

const ft_kernel_t ft_kernel_table = {check, run};
