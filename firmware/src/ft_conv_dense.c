/* Convolution with every weight stored: [output channel][row][column][input channel]. */
#include "ft_conv.h"

static ft_status_t check(const ft_context_t *context) {
    ft_conv_t conv;
    uint32_t weights;
    ft_status_t status = ft_conv_check(context, &conv, &weights);
    if (status == FT_OK && conv.weight_bytes < weights) status = FT_ERROR_FORMAT;
    return status;
}

/* Add a window row's products to the sums of four neighbouring pixels. */
FT_HOT static void dot4(const uint32_t *weights, uint32_t at, const int8_t *p, uint32_t step, uint32_t run, int32_t *sums) {
    const int8_t *p1 = p + step, *p2 = p1 + step, *p3 = p2 + step;
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (uint32_t i = 0; i < run; i++) {
        int32_t weight = (int8_t)ft_byte(weights, at + i);
        s0 += weight * p[i];
        s1 += weight * p1[i];
        s2 += weight * p2[i];
        s3 += weight * p3[i];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

FT_HOT static int32_t dot(const uint32_t *weights, uint32_t at, const int8_t *p, uint32_t run) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < run; i++) sum += (int8_t)ft_byte(weights, at + i) * p[i];
    return sum;
}

static void dense_row(const ft_conv_row_t *row) {
    const uint32_t *weights = ft_words_at(row->context->model, row->conv.weights);
    uint32_t channels = row->context->output.channels, width = row->context->output.width, at = 0;
    ft_conv_channel_t to;
    for (uint32_t channel = 0; channel < channels; channel++, at += row->run * row->conv.kernel_height) {
        uint32_t x = 0;
        ft_conv_begin(row, channel, &to);
        for (; x + 4u <= width; x += 4u) {
            int32_t sums[4] = {to.bias, to.bias, to.bias, to.bias};
            for (uint32_t k = 0; k < row->conv.kernel_height; k++)
                dot4(weights, at + k * row->run, row->rows + row->row[k] + x * row->step, row->step, row->run, sums);
            for (uint32_t i = 0; i < 4u; i++) ft_conv_store(&to, sums[i]);
        }
        for (; x < width; x++) {
            int32_t sum = to.bias;
            for (uint32_t k = 0; k < row->conv.kernel_height; k++)
                sum += dot(weights, at + k * row->run, row->rows + row->row[k] + x * row->step, row->run);
            ft_conv_store(&to, sum);
        }
    }
}

static void run(const ft_context_t *context) { ft_conv_run(context, dense_row); }

const ft_kernel_t ft_kernel_conv_dense = {check, run};
