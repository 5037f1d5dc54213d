/* The part of a convolution that does not depend on how its weights are packed.
 *
 * A padded input is read through a ring of as many rows as the window has, each row copied in once with its
 * padding; an unpadded one is read in place. Either way a kernel sees plain rows. */
#include <string.h>

#include "ft_conv.h"

static int is_padded(const ft_context_t *context, const ft_conv_t *conv) {
    uint32_t rows = (context->output.height - 1u) * conv->stride_height + conv->kernel_height;
    return conv->pad_top != 0u || conv->pad_left != 0u || conv->pad_right != 0u || rows > context->input.height;
}

static uint32_t pitch(const ft_context_t *context, const ft_conv_t *conv) {
    return ((uint32_t)conv->pad_left + context->input.width + conv->pad_right) * context->input.channels;
}

/* No input can make a sum leave 32 bits, shifted left or not: the bias keeps a distance of 128 * 128 a weight. */
static ft_status_t check_arrays(const ft_context_t *context, const ft_conv_t *conv, uint64_t weights) {
    const ft_model_t *model = context->model;
    uint32_t channels = context->output.channels;
    if (!ft_inside(model, conv->bias, 4u * channels) || !ft_inside(model, conv->multiplier, 4u * channels))
        return FT_ERROR_FORMAT;
    if (!ft_inside(model, conv->shift, channels) || !ft_inside(model, conv->weights, conv->weight_bytes))
        return FT_ERROR_FORMAT;
    if (conv->weight_bytes % 4u != 0u) return FT_ERROR_FORMAT;
    for (uint32_t c = 0; c < channels; c++) {
        int32_t bias = (int32_t)ft_words_at(model, conv->bias)[c];
        int32_t multiplier = (int32_t)ft_words_at(model, conv->multiplier)[c];
        int8_t shift = (int8_t)ft_byte(ft_words_at(model, conv->shift), c);
        if (multiplier < 0 || shift < -31 || shift > 30) return FT_ERROR_FORMAT;
        int64_t limit = (INT32_MAX >> (shift > 0 ? shift : 0)) - (int64_t)(weights / channels) * 16384;
        if (bias > limit || bias < -limit) return FT_ERROR_FORMAT;
    }
    return FT_OK;
}

ft_status_t ft_conv_check(const ft_context_t *context, ft_conv_t *conv, uint32_t *weight_count) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    if (!ft_inside(context->model, context->op.params, FT_CONV_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, conv, FT_CONV_BYTES);
    if (conv->kernel_height == 0u || conv->kernel_height > FT_MAX_KERNEL_HEIGHT || conv->kernel_width == 0u)
        return FT_ERROR_FORMAT;
    if (conv->stride_height == 0u || conv->stride_width == 0u || conv->act_min > conv->act_max)
        return FT_ERROR_FORMAT;
    uint32_t wide = (uint32_t)conv->pad_left + in->width + conv->pad_right;
    if ((out->width - 1u) * conv->stride_width + conv->kernel_width > wide) return FT_ERROR_FORMAT;
    uint64_t weights = (uint64_t)conv->kernel_height * conv->kernel_width * in->channels * out->channels;
    uint64_t ring = is_padded(context, conv) ? (uint64_t)conv->kernel_height * wide * in->channels : 0u;
    if (weights >= (1u << 30) || ring + 4u * (uint64_t)conv->max_taps > context->op.scratch_bytes)
        return FT_ERROR_FORMAT;
    if (conv->max_taps != 0u && context->model->header.arena_bytes >= (1u << 24)) return FT_ERROR_FORMAT;
    *weight_count = (uint32_t)weights;
    return check_arrays(context, conv, weights);
}

/* Copy padded input row `index` (0 is the first padding row above the image) to `to`. */
static void fill_row(const ft_conv_row_t *row, uint32_t index, int8_t *to) {
    const ft_tensor_t *in = &row->context->input;
    uint32_t left = (uint32_t)row->conv.pad_left * in->channels, bytes = (uint32_t)in->width * in->channels;
    uint32_t right = (uint32_t)row->conv.pad_right * in->channels, y = index - row->conv.pad_top;
    if (index < row->conv.pad_top || y >= in->height) {
        memset(to, row->conv.pad_value, left + bytes + right);
        return;
    }
    memset(to, row->conv.pad_value, left);
    memcpy(to + left, ft_data(row->context, in) + y * bytes, bytes);
    memset(to + left + bytes, row->conv.pad_value, right);
}

void ft_conv_run(const ft_context_t *context, ft_conv_row_fn fn) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    ft_conv_row_t row;
    row.context = context;
    ft_read(context->model, context->op.params, &row.conv, FT_CONV_BYTES);
    row.taps = (uint32_t *)(void *)(context->model->arena + context->op.scratch);
    row.run = (uint32_t)row.conv.kernel_width * in->channels;
    row.step = (uint32_t)row.conv.stride_width * in->channels;
    row.out = ft_data(context, out);
    int padded = is_padded(context, &row.conv);
    int8_t *ring = (int8_t *)(row.taps + row.conv.max_taps);
    row.rows = padded ? ring : ft_data(context, in);
    uint32_t pitch_bytes = pitch(context, &row.conv), height = row.conv.kernel_height, filled = 0;
    for (uint32_t y = 0; y < out->height; y++, row.out += (uint32_t)out->width * out->channels) {
        uint32_t top = y * row.conv.stride_height;
        for (uint32_t k = 0; k < height; k++) {
            uint32_t slot = padded ? (top + k) % height : top + k;
            row.row[k] = slot * pitch_bytes;
            if (padded && top + k >= filled) {
                fill_row(&row, top + k, ring + row.row[k]);
                filled = top + k + 1u;
            }
        }
        fn(&row);
    }
}

void ft_conv_begin(const ft_conv_row_t *row, uint32_t channel, ft_conv_channel_t *to) {
    const ft_model_t *model = row->context->model;
    const ft_tensor_t *out = &row->context->output;
    int32_t multiplier = (int32_t)ft_words_at(model, row->conv.multiplier)[channel];
    to->bias = (int32_t)ft_words_at(model, row->conv.bias)[channel];
    to->scale = ft_scale(multiplier, (int8_t)ft_byte(ft_words_at(model, row->conv.shift), channel));
    to->zero_point = out->zero_point;
    to->low = row->conv.act_min;
    to->high = row->conv.act_max;
    to->out = row->out + channel;
    to->pitch = out->channels;
}

FT_HOT void ft_conv_taps(const ft_conv_row_t *row, uint32_t channel, uint32_t count) {
    const uint32_t *taps = row->taps, *end = taps + count;
    uint32_t step = row->step, width = row->context->output.width, x = 0;
    const int8_t *p = row->rows;
    ft_conv_channel_t to;
    ft_conv_begin(row, channel, &to);
    for (; x + 4u <= width; x += 4u, p += 4u * step) {
        const int8_t *p1 = p + step, *p2 = p1 + step, *p3 = p2 + step;
        int32_t s0 = to.bias, s1 = to.bias, s2 = to.bias, s3 = to.bias;
        for (const uint32_t *tap = taps; tap < end; tap++) {
            uint32_t at = *tap >> 8;
            int32_t weight = (int8_t)*tap;
            s0 += weight * p[at];
            s1 += weight * p1[at];
            s2 += weight * p2[at];
            s3 += weight * p3[at];
        }
        int32_t sums[4] = {s0, s1, s2, s3};
        for (uint32_t i = 0; i < 4u; i++) ft_conv_store(&to, sums[i]);
    }
    for (; x < width; x++, p += step) {
        int32_t sum = to.bias;
        for (const uint32_t *tap = taps; tap < end; tap++) sum += (int8_t)*tap * p[*tap >> 8];
        ft_conv_store(&to, sum);
    }
}
