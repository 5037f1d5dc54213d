/* Computing one output channel from its non-zero weights, however they were stored. */
#include "ft_conv.h"

/* The list ends where the taps may end: they are written from the lower end and never catch up with it. */
uint32_t *ft_conv_list(const ft_conv_state_t *state) {
    return ft_is_vector(state) ? state->taps : state->taps + state->conv.max_taps;
}

/* A place in weight space: the cell (row and column of the kernel) and what it is in the window. */
typedef struct {
    uint32_t x, y;
    ft_column_t column;
} cell_t;

/* Go on to the next cell; returns where its first channel pair lies in the window. */
FT_APART static uint32_t next_cell(const ft_conv_state_t *state, cell_t *cell) {
    if (++cell->x < state->conv.kernel_width) {
        ft_next_column(state, &cell->column);
    } else {
        cell->x = cell->column.phase = cell->column.start = cell->column.position = 0u;
        cell->y++;
    }
    return cell->y * state->row + cell->column.start + cell->column.position;
}

/* Turn positions in weight space into steps through the window; two weights that meet one word become one tap. */
FT_HOT FT_APART static void make_taps(const ft_conv_state_t *state, uint32_t first, const uint32_t *from,
                                      const uint32_t *stop) {
    uint32_t channels = state->fan, plane = state->plane;
    uint32_t begin = 0, end = channels, base = 0, reached = 0, *to = state->taps;
    cell_t cell = {0u, 0u, {0u, 0u, 0u}};
    while (from < stop) {
        uint32_t entry = *from++, position = entry >> 8;
        for (; position >= end; begin = end, end += channels) base = next_cell(state, &cell);
        position += first - begin;
        uint32_t at = base + position / 2u * plane, pair = (uint32_t)(int8_t)entry << 16;
        if (position % 2u == 0u) pair >>= 16;
        if (FT_RARELY(at + FT_SPARSE_MOVES == reached)) {
            to[-1] |= pair;
            continue;
        }
        *to++ = at - reached;
        *to++ = pair;
        reached = at + FT_SPARSE_MOVES;
    }
    for (uint32_t i = 0; i < FT_SPARSE_TAPS; i++, to += 2) to[0] = 0u - FT_SPARSE_MOVES, to[1] = 0u;
}

static void vector(const ft_conv_state_t *state, const ft_conv_channel_t *numbers, uint32_t count, int8_t *out) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    int32_t sum = numbers->bias;
    for (uint32_t i = 0; i < count; i++) sum += (int8_t)state->taps[i] * in[state->taps[i] >> 8];
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

FT_HOT void ft_conv_taps(ft_conv_state_t *state, uint32_t channel, uint32_t count) {
    const ft_tensor_t *out = &state->context->output;
    uint32_t width = out->width, pitch = out->channels, step = state->conv.stride_height * state->row;
    const uint32_t *window = state->window;
    int8_t *to = state->out + channel;
    ft_conv_channel_t numbers;
    ft_conv_begin(state, channel, &numbers);
    if (ft_is_vector(state)) {
        vector(state, &numbers, count, to);
        return;
    }
    if (count == 0u) {
        constant(&numbers, state->height * width, to, pitch);
        return;
    }
    uint32_t group = channel / (out->channels / state->conv.groups);
    make_taps(state, group * state->fan, ft_conv_list(state), ft_conv_list(state) + count);
    ft_block_t block = {state->taps, NULL, {numbers.bias, 0}, pitch, {numbers.quick, numbers.quick}};
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
