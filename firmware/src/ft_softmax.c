/* Softmax over the channels of every pixel, in gemmlowp's fixed point: the order of roundings decides the bytes. */
#include "ft_internal.h"

#define ONE INT32_MAX /* 1.0, all bits behind the point */

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    ft_softmax_t softmax;
    if (!ft_inside(context->model, context->op.params, FT_SOFTMAX_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &softmax, FT_SOFTMAX_BYTES);
    if (softmax.multiplier < 0 || softmax.shift < 0 || softmax.shift > 30) return FT_ERROR_FORMAT;
    if (softmax.lowest > 0 || softmax.lowest < -255) return FT_ERROR_FORMAT;
    if (-softmax.lowest > INT32_MAX >> softmax.shift || in->channels > FT_MAX_SHARES) return FT_ERROR_FORMAT;
    if (in->height != out->height || in->width != out->width || in->channels != out->channels) return FT_ERROR_FORMAT;
    return ft_whole(context) ? FT_OK : FT_ERROR_FORMAT;
}

/* a * b / 2^31, rounded to nearest. */
FT_APART static int32_t high_mul(int32_t a, int32_t b) {
    int64_t product = (int64_t)a * b;
    return (int32_t)((product + (product < 0 ? 1 - (1 << 30) : 1 << 30)) / ((int64_t)1 << 31));
}

/* value / 2^bits, rounded to nearest, halves away from zero. */
static int32_t shift_right(int32_t value, uint32_t bits) {
    int32_t mask = (int32_t)(((uint32_t)1 << bits) - 1u);
    return (value >> bits) + ((value & mask) > (mask >> 1) + (value < 0));
}

static int32_t shift_left(int32_t value, uint32_t bits) {
    int32_t limit = INT32_MAX >> bits;
    return value > limit ? INT32_MAX : value < -limit ? INT32_MIN : value * (1 << bits);
}

/* exp of a value from -1/4 to 0: a polynomial about -1/8. */
static int32_t exp_near_zero(int32_t value) {
    const int32_t exp_eighth = 1895147668, third = 715827883;
    int32_t x = value + (1 << 28), x2 = high_mul(x, x), x3 = high_mul(x2, x), x4 = high_mul(x2, x2);
    int32_t tail = shift_right(high_mul(shift_right(x4, 2) + x3, third) + x2, 1);
    return exp_eighth + high_mul(exp_eighth, x + tail);
}

/* exp of a value up to 0 with 26 bits behind the point: of its last quarter, and by factors of the rest. */
static int32_t exp_of(int32_t value) {
    static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = 1 << 24;
    int32_t low = (value & (quarter - 1)) - quarter, result = exp_near_zero(low * 32), rest = low - value;
    for (uint32_t i = 0; i < 7u; i++)
        if (rest & (quarter << i)) result = high_mul(result, powers[i]);
    return value == 0 ? ONE : result;
}

/* 1 / (1 + value) for a value from 0 to 1, by three Newton steps. */
static int32_t one_over_one_plus(int32_t value) {
    int32_t half = (int32_t)(((uint32_t)value + (uint32_t)ONE + 1u) >> 1);
    int32_t x = 1515870810 + high_mul(half, -1010580540); /* 48/17 and -32/17, two bits before the point */
    for (uint32_t i = 0; i < 3u; i++) x += shift_left(high_mul(x, (1 << 29) - high_mul(half, x)), 2u);
    return shift_left(x, 1u);
}

/* One pixel's shares of the whole: every power is made twice, which saves memory for them. */
static void shares(const int8_t *in, int8_t *out, uint32_t channels, const ft_softmax_t *softmax) {
    int32_t largest = -128, sum = 0;
    uint32_t headroom = 0;
    for (uint32_t c = 0; c < channels; c++)
        if (in[c] > largest) largest = in[c];
    for (uint32_t c = 0; c < channels; c++) {
        int32_t away = in[c] - largest;
        if (away >= softmax->lowest) sum += shift_right(exp_of(high_mul(away * (1 << softmax->shift), softmax->multiplier)), 12);
    }
    while (!(((uint32_t)sum << headroom) >> 31)) headroom++;
    int32_t reciprocal = one_over_one_plus((int32_t)(((uint32_t)sum << headroom) & INT32_MAX));
    uint32_t bits = 12u - headroom + 23u;
    for (uint32_t c = 0; c < channels; c++) {
        int32_t away = in[c] - largest, share = 0;
        if (away >= softmax->lowest && bits < 32u)
            share = shift_right(high_mul(reciprocal, exp_of(high_mul(away * (1 << softmax->shift), softmax->multiplier))), bits);
        out[c] = ft_finish(share, -128, -128, 127);
    }
}

static void run(ft_context_t *context) {
    const ft_tensor_t *in = &context->input;
    const int8_t *from = ft_data(context, in);
    int8_t *to = ft_data(context, &context->output);
    ft_softmax_t softmax;
    ft_read(context->model, context->op.params, &softmax, FT_SOFTMAX_BYTES);
    uint32_t pixels = (uint32_t)in->height * in->width;
    for (; pixels > 0u; pixels--, from += in->channels, to += in->channels) shares(from, to, in->channels, &softmax);
    context->row = in->height;
}

const ft_kernel_t ft_kernel_softmax = {check, run};
