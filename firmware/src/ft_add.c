/* Addition of two tensors of one shape, each with a scale and zero point of its own. */
#include "fedtiny/ft_config.h"

#if FT_FAST_CONV && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif

#include "arch/ft_arch.h"
#include "ft_internal.h"

#define HALF 0x40000000 /* the multiplier of the input with the larger scale: a half, exactly */

static int shift_ok(int32_t multiplier, int32_t shift) { return multiplier >= 0 && shift <= 0 && shift >= -31; }

static ft_status_t check(const ft_context_t *context) {
    const ft_tensor_t *a = &context->input, *b = &context->input2, *out = &context->output;
    ft_add_t add;
    if (!ft_inside(context->model, context->op.params, FT_ADD_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, &add, FT_ADD_BYTES);
    if (!shift_ok(add.multiplier1, add.shift1) || !shift_ok(add.multiplier2, add.shift2)) return FT_ERROR_FORMAT;
    if (!shift_ok(add.multiplier_out, add.shift_out) || add.act_min > add.act_max) return FT_ERROR_FORMAT;
    if (a->height != out->height || a->width != out->width || a->channels != out->channels) return FT_ERROR_FORMAT;
    if (context->op.streamed) return FT_ERROR_FORMAT;
    if (b->height != out->height || b->width != out->width || b->channels != out->channels) return FT_ERROR_FORMAT;
    return FT_OK;
}

/* One addition: two inputs and where the sums go. */
typedef struct {
    const int8_t *a, *b;
    int8_t *out;
    uint32_t count;
    int32_t zero_a, zero_b;
} operands_t;

/* Everything is twice as large; `a` is halved exactly, which is a shift by 20 instead of 21. */
FT_HOT FT_APART static void add_quickly(operands_t x, ft_quick_t second, ft_quick_t result) {
    const int8_t *a = x.a, *b = x.b, *end = x.a + x.count;
    int32_t offset_a = -x.zero_a * (1 << 20), offset_b = -x.zero_b * (1 << 21);
    for (int8_t *out = x.out; a < end;) {
        int32_t scaled = ft_quick_rescale_twice(*b++ * (1 << 21) + offset_b, &second);
        *out++ = (int8_t)ft_saturate(ft_quick_rescale_twice(*a++ * (1 << 20) + offset_a + 2 * scaled, &result));
    }
}

FT_HOT FT_APART static void add_any(operands_t x, const ft_add_t *add, int32_t zero_point) {
    ft_scale_t first = ft_scale(add->multiplier1, add->shift1), second = ft_scale(add->multiplier2, add->shift2);
    ft_scale_t result = ft_scale(add->multiplier_out, add->shift_out);
    for (uint32_t i = 0; i < x.count; i++) {
        int32_t a = (x.a[i] - x.zero_a) * (1 << 20), b = (x.b[i] - x.zero_b) * (1 << 20);
        int32_t value = ft_rescale(ft_rescale(a, &first) + ft_rescale(b, &second), &result);
        x.out[i] = ft_finish(value, zero_point, add->act_min, add->act_max);
    }
}

static void run(ft_context_t *context) {
    const ft_tensor_t *a = &context->input, *b = &context->input2, *out = &context->output;
    ft_add_t add;
    ft_quick_t second, result;
    ft_read(context->model, context->op.params, &add, FT_ADD_BYTES);
    ft_rows_t rows = ft_next_rows(context);
    uint32_t y = rows.first;
    operands_t x = {ft_row(context, a, y), ft_row(context, b, y), ft_row(context, out, y), rows.elements, 0, 0};
    operands_t swapped = {x.b, x.a, x.out, x.count, b->zero_point, a->zero_point};
    x.zero_a = a->zero_point, x.zero_b = b->zero_point;
    int quick = ft_quick(&result, add.multiplier_out, add.shift_out, out->zero_point);
    quick = quick && add.act_min == -128 && add.act_max == 127;
    if (quick && add.multiplier1 == HALF && add.shift1 == 0 && ft_quick(&second, add.multiplier2, add.shift2, 0))
        add_quickly(x, second, result);
    else if (quick && add.multiplier2 == HALF && add.shift2 == 0 && ft_quick(&second, add.multiplier1, add.shift1, 0))
        add_quickly(swapped, second, result);
    else add_any(x, &add, out->zero_point);
}

const ft_kernel_t ft_kernel_add = {check, run};
