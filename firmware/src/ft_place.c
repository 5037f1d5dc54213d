/* Copying an image to a place inside a larger one: padding, where the rest is filled, and joining, where it is not. */
#include <string.h>

#include "ft_internal.h"

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    ft_place_t place;
    if (!ft_inside(context->model, context->op.params, FT_PLACE_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &place, FT_PLACE_BYTES);
    if ((uint32_t)place.top + in->height > out->height || (uint32_t)place.left + in->width > out->width) return FT_ERROR_FORMAT;
    if ((uint32_t)place.front + in->channels > out->channels || !ft_whole(context)) return FT_ERROR_FORMAT;
    return FT_OK;
}

static void run(ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    const int8_t *from = ft_data(context, in);
    ft_place_t place;
    ft_read(context->model, context->op.params, &place, FT_PLACE_BYTES);
    if (place.fill) memset(ft_data(context, out), place.value, ft_tensor_bytes(out));
    /* whole rows where the channels are all there */
    uint32_t pieces = in->channels == out->channels ? 1u : in->width, bytes = in->width * in->channels / pieces;
    for (uint32_t y = 0; y < in->height; y++) {
        int8_t *to = ft_row(context, out, place.top + y) + (uint32_t)place.left * out->channels + place.front;
        for (uint32_t i = 0; i < pieces; i++, from += bytes, to += out->channels) ft_copy(to, from, bytes);
    }
    context->row = out->height;
}

const ft_kernel_t ft_kernel_place = {check, run};
