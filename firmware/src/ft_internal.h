/* What the runtime's files share. Nothing here is part of the API. */
#ifndef FT_INTERNAL_H
#define FT_INTERNAL_H

#include "fedtiny/ft.h"

/* A function that gets faster if the compiler does not mix it with its caller, and a condition that hardly ever
 * holds. */
#if defined(__GNUC__)
#define FT_APART __attribute__((noinline))
#define FT_RARELY(condition) __builtin_expect(condition, 0)
#else
#define FT_APART
#define FT_RARELY(condition) (condition)
#endif

/* One operator, its records copied out of the model (which may allow word loads only). */
typedef struct ft_context {
    const ft_model_t *model;
    ft_op_t op;
    ft_tensor_t input, input2, output; /* input2 repeats input where the operator has one input */
    uint32_t row;                      /* output rows made so far */
    uint32_t filled;                   /* of a convolution: padded input rows taken so far */
    uint32_t available;                /* rows that the operator before has made; UINT32_MAX if all are there */
} ft_context_t;

/* True if `bytes` bytes at `offset` lie inside the model and start at a word. */
int ft_inside(const ft_model_t *model, uint32_t offset, uint32_t bytes);

/* Copy a record of whole words out of the model. */
void ft_read(const ft_model_t *model, uint32_t offset, void *record, uint32_t bytes);

/* Read operator `index` and its tensors. */
void ft_read_op(const ft_model_t *model, uint32_t index, ft_context_t *context);

static inline const uint32_t *ft_words_at(const ft_model_t *model, uint32_t offset) {
    return model->words + offset / 4u;
}

/* Byte `index` of a word-aligned stream: the one place where model bytes narrower than a word are read. Volatile keeps
 * a compiler that wants one byte only from loading no more. */
static inline uint8_t ft_byte(const uint32_t *words, uint32_t index) {
#if FT_MODEL_WORDS_ONLY
    return (uint8_t)(*(const volatile uint32_t *)(words + index / 4u) >> (8u * (index % 4u)));
#else
    return ((const uint8_t *)words)[index];
#endif
}

/* Bytes in the arena. */
static inline uint32_t ft_tensor_bytes(const ft_tensor_t *tensor) {
    return (uint32_t)tensor->rows * tensor->width * tensor->channels;
}

static inline int8_t *ft_data(const ft_context_t *context, const ft_tensor_t *tensor) {
    return (int8_t *)context->model->arena + tensor->offset;
}

/* Row `y` of a tensor, of which only some rows may be in the arena. */
static inline int8_t *ft_row(const ft_context_t *context, const ft_tensor_t *tensor, uint32_t y) {
    uint32_t at = tensor->rows == tensor->height ? y : y % tensor->rows;
    return ft_data(context, tensor) + at * tensor->width * tensor->channels;
}

/* The rows of a pointwise operator that can be made now; they count as made. */
typedef struct ft_rows {
    uint32_t first, elements;
} ft_rows_t;

static inline ft_rows_t ft_next_rows(ft_context_t *context) {
    const ft_tensor_t *out = &context->output;
    uint32_t end = context->available < out->height ? context->available : out->height;
    ft_rows_t rows = {context->row, (end - context->row) * out->width * out->channels};
    context->row = end;
    return rows;
}

/* An operator that needs all of its inputs, and gives all of its output, at once. */
static inline int ft_whole(const ft_context_t *context) {
    return !context->op.streamed && context->input.rows == context->input.height &&
           context->input2.rows == context->input2.height;
}

/* Copy a few bytes. The empty statement keeps a compiler from putting the C library's memcpy in the loop's place, which
 * takes more flash than all of this saves time. */
static inline void ft_copy(int8_t *to, const int8_t *from, uint32_t bytes) {
    while (bytes-- > 0u) {
        *to++ = *from++;
#if defined(__GNUC__)
        __asm__ volatile("");
#endif
    }
}

/* A factor multiplier * 2^(shift - 31), taken apart once for many numbers. */
typedef struct ft_scale {
    int32_t multiplier;
    uint32_t left, right;
    int32_t mask, half;
} ft_scale_t;

static inline ft_scale_t ft_scale(int32_t multiplier, int32_t shift) {
    ft_scale_t scale;
    scale.multiplier = multiplier;
    scale.left = shift > 0 ? (uint32_t)shift : 0u;
    scale.right = shift > 0 ? 0u : (uint32_t)-shift;
    scale.mask = (int32_t)(((uint32_t)1 << scale.right) - 1u);
    scale.half = scale.mask >> 1;
    return scale;
}

/* x times the factor, rounded twice as gemmlowp does: once to 32 bits, once by the right shift. */
static inline int32_t ft_rescale(int32_t x, const ft_scale_t *scale) {
    int32_t shifted = (int32_t)((uint32_t)x << scale->left);
    int32_t high = (int32_t)(((int64_t)shifted * scale->multiplier + ((int64_t)1 << 30)) >> 31);
    return (high >> scale->right) + ((high & scale->mask) > scale->half + (high < 0));
}

/* The same factor and a zero point to add, for a right shift r of 1 to 22 and numbers below 2^30: rounding twice is
 * ((x * m + 2^30 >> 31) + 2^(r - 1) - (x < 0)) >> r. That the last term asks for the sign of x and not for that of
 * the first result makes no difference: where they differ the first result is 0 and so is the second. */
typedef struct ft_quick {
    int32_t multiplier;
    int32_t offset; /* 2^(r - 1), and the zero point times 2^r */
    int32_t shift;  /* r */
} ft_quick_t;

/* 0 if the factor is none of these. */
static inline int ft_quick(ft_quick_t *quick, int32_t multiplier, int32_t shift, int32_t zero_point) {
    if (shift > -1 || shift < -22) return 0;
    quick->multiplier = multiplier;
    quick->shift = -shift;
    quick->offset = (1 << (-shift - 1)) + zero_point * (1 << -shift);
    return 1;
}

/* Add the zero point and clamp, in the order that cannot overflow. */
static inline int8_t ft_finish(int32_t value, int32_t zero_point, int32_t low, int32_t high) {
    if (value < low - zero_point) return (int8_t)low;
    if (value > high - zero_point) return (int8_t)high;
    return (int8_t)(value + zero_point);
}

#endif
