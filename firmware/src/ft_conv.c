/* The part of a convolution that does not depend on how its weights are packed. */
#include "ft_conv.h"

static int is_vector(const ft_context_t *context, const ft_conv_t *conv) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    return in->height == 1u && in->width == 1u && out->height == 1u && out->width == 1u && conv->kernel_height == 1u &&
           conv->kernel_width == 1u && conv->pad_top == 0u && conv->pad_left == 0u && conv->groups == 1u;
}

/* Sizes of the window; 0 if it cannot be this large. */
static uint64_t measure(const ft_context_t *context, ft_conv_state_t *state) {
    const ft_conv_t *conv = &state->conv;
    uint32_t stride = conv->stride_width, reach = (conv->kernel_width - 1u) * conv->dilation_width;
    state->context = context;
    state->is_vector = is_vector(context, conv);
    uint32_t block = context->output.width < 8u ? 8u : context->output.width;
    state->fan = context->input.channels / conv->groups;
    state->weights = (uint32_t)conv->kernel_height * conv->kernel_width * state->fan;
    state->pairs = (context->input.channels + 1u) / 2u;
    state->positions = block + reach / stride;
    state->last = reach % stride;
    state->phases = stride <= reach ? stride : reach + 1u;
    state->tall = (conv->kernel_height - 1u) * conv->dilation_height + 1u;
    state->plane = state->phases * state->positions;
    if (state->phases > state->last + 1u) state->plane -= state->phases - state->last - 1u;
    state->most = ft_quick_bias(conv, state->weights);
    uint64_t row = (uint64_t)state->pairs * state->plane;
    if (row > UINT32_MAX) return 0u;
    state->row = (uint32_t)row;
    return row * ((conv->rows - 1u) * (uint32_t)conv->stride_height + state->tall);
}

static uint32_t multiple(uint32_t count, uint32_t of) { return (count + of - 1u) / of * of; }

static uint32_t tap_words(const ft_conv_state_t *state, ft_conv_kind_t kind) {
    uint32_t cells = (uint32_t)state->conv.kernel_height * state->conv.kernel_width;
    if (kind == FT_CONV_SPARSE) return cells + 2u * (state->conv.max_taps + 1u);
    if (kind == FT_CONV_DEPTHWISE) return FT_DEPTHWISE_STEP * multiple(cells, FT_DEPTHWISE_TAPS);
    return FT_DENSE_STEP * multiple(cells * state->pairs, FT_DENSE_TAPS);
}

/* No input can make a sum leave 32 bits, shifted left or not: the bias keeps a distance of 128 * 128 a weight. */
static ft_status_t check_arrays(const ft_context_t *context, const ft_conv_t *conv, uint32_t weights) {
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
        int64_t limit = (INT32_MAX >> (shift > 0 ? shift : 0)) - (int64_t)weights * 16384;
        if (bias > limit || bias < -limit) return FT_ERROR_FORMAT;
    }
    return FT_OK;
}

/* Dense kernels have no groups, or each channel is one. */
static int groups_ok(const ft_context_t *context, uint32_t groups, ft_conv_kind_t kind) {
    uint32_t in = context->input.channels;
    if (groups == 0u || in % groups != 0u || context->output.channels % groups != 0u) return 0;
    return kind == FT_CONV_SPARSE || groups == (kind == FT_CONV_DENSE ? 1u : in);
}

ft_status_t ft_conv_check(const ft_context_t *context, ft_conv_state_t *state, ft_conv_kind_t kind) {
    const ft_tensor_t *in = &context->input, *out = &context->output;
    ft_conv_t *conv = &state->conv;
    if (!ft_inside(context->model, context->op.params, FT_CONV_BYTES)) return FT_ERROR_FORMAT;
    ft_read(context->model, context->op.params, conv, FT_CONV_BYTES);
    if (conv->kernel_height == 0u || conv->kernel_height > FT_MAX_KERNEL_HEIGHT || conv->kernel_width == 0u)
        return FT_ERROR_FORMAT;
    if (conv->stride_height == 0u || conv->stride_width == 0u || conv->rows == 0u || conv->act_min > conv->act_max)
        return FT_ERROR_FORMAT;
    if (conv->dilation_height == 0u || conv->dilation_width == 0u) return FT_ERROR_FORMAT;
    if (!groups_ok(context, conv->groups, kind)) return FT_ERROR_FORMAT;
    uint32_t wide = (uint32_t)conv->pad_left + in->width + conv->pad_right;
    uint32_t reach = (conv->kernel_width - 1u) * conv->dilation_width;
    if ((out->width - 1u) * conv->stride_width + reach >= wide) return FT_ERROR_FORMAT;
    uint64_t fan_in = (uint64_t)conv->kernel_height * conv->kernel_width * in->channels;
    if (fan_in * out->channels >= (1u << 30) || (kind == FT_CONV_SPARSE && fan_in >= (1u << 24))) return FT_ERROR_FORMAT;
    uint64_t window = measure(context, state), taps = tap_words(state, kind);
    if (state->is_vector ? kind == FT_CONV_DEPTHWISE : window == 0u) return FT_ERROR_FORMAT;
    if (!state->is_vector && window + taps > context->op.scratch_bytes / 4u) return FT_ERROR_FORMAT;
    if (context->op.streamed && (state->is_vector || out->rows != conv->rows)) return FT_ERROR_FORMAT;
    return check_arrays(context, conv, state->weights);
}

/* What goes into one plane of one column phase: padding, then pixels, then padding. */
typedef struct {
    uint32_t *to;
    const int8_t *from; /* the first pixel */
    uint32_t step;      /* bytes from pixel to pixel */
    uint32_t left, pixels, right;
    uint32_t padding;
    int padded; /* padding is to be written: rows that move through the window leave theirs behind */
} run_t;

static void put_padding(uint32_t *to, uint32_t padding, uint32_t count) {
    while (count-- > 0u) *to++ = padding;
}

/* Channel c and c + 1 of every pixel; a channel beyond the last meets no weight. */
static void put_pair(const run_t *run, uint32_t c, uint32_t channels, uint32_t *to) {
    const int8_t *from = run->from + c;
    for (uint32_t i = 0; i < run->pixels; i++, from += run->step)
        *to++ = ft_pair(from[0], c + 1u < channels ? from[1] : 0);
}

/* Four channels of every pixel, aligned, to one plane and the next. */
FT_HOT static inline void put_four(const uint32_t *from, uint32_t step, uint32_t pixels, uint32_t *to, uint32_t *next) {
    for (const uint32_t *end = to + (pixels & ~1u); to < end; to += 2, next += 2) {
        uint32_t pixel = *from, first, second;
        from += step;
        ft_widen(pixel, &first, &second);
        pixel = *from;
        from += step;
        to[0] = first;
        next[0] = second;
        ft_widen(pixel, &to[1], &next[1]);
    }
    if (pixels % 2u != 0u) ft_widen(*from, to, next);
}

static void put_planes(const ft_conv_state_t *state, run_t run) {
    uint32_t channels = state->context->input.channels, plane = state->plane, c = 0;
    for (uint32_t i = 0; i < state->pairs && run.padded; i++) {
        uint32_t *to = run.to + i * plane;
        put_padding(to, run.padding, run.left);
        put_padding(to + run.left + run.pixels, run.padding, run.right);
    }
    run.to += run.left;
    if (run.pixels == 0u) return;
    if (((uintptr_t)run.from | channels) % 4u == 0u)
        for (; c < channels; c += 4u, run.to += 2u * plane)
            put_four((const uint32_t *)(const void *)(run.from + c), run.step / 4u, run.pixels, run.to, run.to + plane);
    for (; c < channels; c += 2u, run.to += plane) put_pair(&run, c, channels, run.to);
}

/* How many of the columns phase, phase + stride.. lie before column `end`. */
static uint32_t columns_before(uint32_t end, uint32_t phase, uint32_t stride) {
    return end > phase ? (end - phase + stride - 1u) / stride : 0u;
}

/* Put padded input row `index` (0 is the first padding row above the image) into the window. */
static void fill_row(const ft_conv_state_t *state, uint32_t index, uint32_t *to) {
    const ft_tensor_t *in = &state->context->input;
    const ft_conv_t *conv = &state->conv;
    uint32_t y = index - conv->pad_top, stride = conv->stride_width;
    int inside = index >= conv->pad_top && y < in->height;
    int first = index < (conv->rows - 1u) * (uint32_t)conv->stride_height + state->tall;
    const int8_t *from = inside ? ft_row(state->context, in, y) : NULL;
    run_t run = {to, NULL, stride * in->channels, 0u, 0u, 0u, ft_pair(conv->pad_value, conv->pad_value), 0};
    for (uint32_t phase = 0; phase < state->phases; phase++) {
        uint32_t all = ft_positions(state, phase);
        uint32_t left = columns_before(conv->pad_left, phase, stride);
        uint32_t end = columns_before((uint32_t)conv->pad_left + in->width, phase, stride);
        if (end > all) end = all;
        run.left = inside && left < end ? left : all;
        run.pixels = inside && left < end ? end - left : 0u;
        run.right = all - run.left - run.pixels;
        run.padded = first || run.pixels == 0u;
        if (run.pixels > 0u) run.from = from + (left * stride + phase - conv->pad_left) * in->channels;
        put_planes(state, run);
        run.to += all;
    }
}

/* Fill the window up to padded row `end`; 0 if a row of the image is not there yet. */
FT_APART static int fill(ft_context_t *context, const ft_conv_state_t *state, uint32_t top, uint32_t end) {
    for (; context->filled < end; context->filled++) {
        uint32_t index = context->filled, y = index - state->conv.pad_top;
        if (index >= state->conv.pad_top && y < context->input.height && y >= context->available) return 0;
        fill_row(state, index, state->window + (index - top) * state->row);
    }
    return 1;
}

/* Let go of the rows above padded row `top + step`. */
static void advance(ft_context_t *context, const ft_conv_state_t *state, uint32_t top, uint32_t step) {
    uint32_t next = top + step;
    uint32_t kept = context->filled > next ? (context->filled - next) * state->row : 0u;
    if (kept > 0u) ft_copy_words(state->window, state->window + step * state->row, kept);
    else context->filled = next;
}

void ft_conv_run(ft_context_t *context, const ft_conv_way_t *way) {
    ft_conv_state_t state;
    ft_read(context->model, context->op.params, &state.conv, FT_CONV_BYTES);
    (void)measure(context, &state);
    if (state.is_vector) {
        way->vector(&state);
        context->row++;
        return;
    }
    state.taps = (uint32_t *)(void *)(context->model->arena + context->op.scratch);
    state.window = state.taps + tap_words(&state, way->kind);
    uint32_t left = context->output.height - context->row, top = context->row * state.conv.stride_height;
    state.height = left < state.conv.rows ? left : state.conv.rows;
    state.out = ft_row(context, &context->output, context->row);
    uint32_t end = top + (state.height - 1u) * state.conv.stride_height + state.tall;
    if (context->filled == 0u) way->begin(&state);
    if (!fill(context, &state, top, end)) return;
    way->pass(&state);
    context->row += state.height;
    if (state.height < left) advance(context, &state, top, state.height * state.conv.stride_height);
}

void ft_conv_begin(const ft_conv_state_t *state, uint32_t channel, ft_conv_channel_t *to) {
    const ft_model_t *model = state->context->model;
    to->bias = (int32_t)ft_words_at(model, state->conv.bias)[channel];
    to->multiplier = (int32_t)ft_words_at(model, state->conv.multiplier)[channel];
    to->shift = (int8_t)ft_byte(ft_words_at(model, state->conv.shift), channel);
    to->is_quick = ft_quick(&to->quick, to->multiplier, to->shift, state->context->output.zero_point);
    if (to->bias >= state->most || to->bias <= -state->most) to->is_quick = 0;
}

FT_HOT void ft_conv_store(const ft_conv_state_t *state, const ft_conv_channel_t *channel, const int32_t *sums,
                          uint32_t count, int8_t *out, uint32_t pitch) {
    ft_scale_t scale = ft_scale(channel->multiplier, channel->shift);
    int32_t zero_point = state->context->output.zero_point, low = state->conv.act_min, high = state->conv.act_max;
    for (const int32_t *end = sums + count; sums < end; out += pitch)
        *out = ft_finish(ft_rescale(*sums++, &scale), zero_point, low, high);
}

FT_HOT void ft_vector_store(const ft_conv_state_t *state, uint32_t channel, int32_t sum) {
    ft_conv_channel_t numbers;
    int8_t *out = ft_data(state->context, &state->context->output) + channel;
    ft_conv_begin(state, channel, &numbers);
    sum += numbers.bias;
    /* in plain C the quick way is hardly quicker for one number */
    if (FT_ARCH_ARM_DSP && numbers.is_quick) *out = (int8_t)ft_saturate(ft_quick_rescale(sum, &numbers.quick));
    else ft_conv_store(state, &numbers, &sum, 1u, out, 1u);
}
