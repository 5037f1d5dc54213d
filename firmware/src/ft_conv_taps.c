/* Computing one output channel from its non-zero weights, however they were stored. */
#include "ft_conv.h"

/* The list ends where the taps may end: they are written from the lower end and never catch up with it. */
uint32_t *ft_conv_list(const ft_conv_state_t *state) {
    return ft_is_vector(state) ? state->taps : state->taps + state->conv.max_taps;
}

/* Where the cells (row and column of the kernel) begin in the window: behind the taps. */
static uint32_t *cells_of(const ft_conv_state_t *state) {
    return state->taps + 2u * (state->conv.max_taps + FT_SPARSE_TAPS);
}

void ft_conv_cells(ft_conv_state_t *state) {
    uint32_t *cell = cells_of(state);
    if (ft_is_vector(state)) return;
    for (uint32_t y = 0; y < state->conv.kernel_height; y++) {
        ft_column_t column = {0u, 0u, 0u};
        for (uint32_t x = 0; x < state->conv.kernel_width; x++, ft_next_column(state, &column))
            *cell++ = y * state->row + column.start + column.position;
    }
}

/* Turn positions in weight space into steps through the window; two weights that meet one word become one tap. Input
 * channels count from `first`. */
FT_HOT FT_APART static void make_taps(const ft_conv_state_t *state, uint32_t first, const uint32_t *from,
                                      const uint32_t *stop) {
    uint32_t channels = state->fan, plane = state->plane, end = 0, base = 0, reached = 0, *to = state->taps;
    const uint32_t *cell = cells_of(state);
    first += channels;
    while (from < stop) {
        uint32_t entry = *from++, position = entry >> 8;
        for (; position >= end; end += channels) base = *cell++;
        position += first - end;
        uint32_t at = base + position / 2u * plane, pair = (uint32_t)(int8_t)entry << 16;
        if (position % 2u == 0u) pair >>= 16;
        at += FT_SPARSE_MOVES;
        if (FT_RARELY(at == reached)) {
            to[-1] |= pair;
            continue;
        }
        *to++ = at - FT_SPARSE_MOVES - reached;
        *to++ = pair;
        reached = at;
    }
    for (uint32_t i = 0; i < FT_SPARSE_TAPS; i++, to += 2) to[0] = 0u - FT_SPARSE_MOVES, to[1] = 0u;
}

static void vector(const ft_conv_state_t *state, const ft_conv_channel_t *numbers, const uint32_t *list,
                   const uint32_t *end, int8_t *out) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    int32_t sum = numbers->bias;
    for (; list < end; list++) sum += (int8_t)*list * in[*list >> 8];
    ft_conv_store(numbers, &sum, 1u, out, 1u);
}

/* A channel without weights has one output everywhere. */
static void constant(const ft_conv_channel_t *numbers, uint32_t pixels, int8_t *out, uint32_t pitch) {
    ft_conv_store(numbers, &numbers->bias, 1u, out, 1u);
    for (int8_t value = *out; pixels > 0u; pixels--, out += pitch) *out = value;
}

static void slowly(const ft_conv_channel_t *numbers, const ft_block_t *block, const uint32_t *window, uint32_t pixels,
                   int8_t *out) {
    int32_t sums[8];
    ft_sums_1x8(window, block, sums);
    ft_conv_store(numbers, sums, pixels, out, block->pitch);
}

FT_HOT void ft_conv_taps(ft_conv_state_t *state, uint32_t channel, const uint32_t *list, const uint32_t *end) {
    const ft_tensor_t *out = &state->context->output;
    uint32_t width = out->width, pitch = out->channels, step = state->conv.stride_height * state->row;
    const uint32_t *window = state->window;
    int8_t *to = state->out + channel;
    ft_conv_channel_t numbers;
    ft_conv_begin(state, channel, &numbers);
    if (ft_is_vector(state)) {
        vector(state, &numbers, list, end, to);
        return;
    }
    if (list == end) {
        constant(&numbers, state->height * width, to, pitch);
        return;
    }
    uint32_t group = state->conv.groups == 1u ? 0u : channel / (out->channels / state->conv.groups);
    make_taps(state, group * state->fan, list, end);
    ft_block_t block;
    block.taps = state->taps;
    block.bias[0] = numbers.bias;
    block.pitch = pitch;
    block.scale[0] = numbers.quick;
    int quick = numbers.is_quick && width >= 8u;
    for (uint32_t y = 0; y < state->height; y++, window += step, to += width * pitch) {
        for (uint32_t x = 0; x < width; x += 8u) {
            /* the last block of a row goes back to be whole: it makes some outputs twice */
            if (width - x < 8u && x > 0u) x = width - 8u;
            if (quick) ft_outputs_1x8(window + x, &block, to + x * pitch);
            else slowly(&numbers, &block, window + x, width < 8u ? width : 8u, to + x * pitch);
        }
    }
}
