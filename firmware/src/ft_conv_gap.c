/* Convolution with only the non-zero weights stored, each after a byte that says how many zeros precede it.
 *
 * The stream runs through the whole layer, output channel after output channel. A gap of FT_GAP_SKIP moves on
 * by that many weights and has no value; the stream ends with a gap that reaches the end of the layer. */
#include "ft_conv.h"

/* Where the decoder stands: the next byte to read. */
typedef struct {
    const uint32_t *words;
    uint32_t at;
} gap_stream_t;

static inline void next_gap(gap_stream_t *stream, uint32_t *position) {
    uint32_t gap;
    do {
        gap = ft_byte(stream->words, stream->at++);
        *position += gap;
    } while (FT_RARELY(gap == FT_GAP_SKIP));
}

/* As next_gap, but of a stream that nobody has checked yet. */
static int next_gap_checked(gap_stream_t *stream, uint32_t *position, uint32_t bytes) {
    uint32_t gap;
    do {
        if (stream->at >= bytes) return 0;
        gap = ft_byte(stream->words, stream->at++);
        *position += gap;
    } while (gap == FT_GAP_SKIP);
    return 1;
}

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_SPARSE);
    if (status != FT_OK) return status;
    if (state.conv.weight_bytes >= (1u << 24)) return FT_ERROR_FORMAT;
    gap_stream_t stream = {ft_words_at(context->model, state.conv.weights), 0u};
    uint32_t weights = state.weights * context->output.channels, end = state.weights, taps = 0, position = 0;
    if (!next_gap_checked(&stream, &position, state.conv.weight_bytes)) return FT_ERROR_FORMAT;
    while (position < weights) {
        for (; position >= end; taps = 0) end += state.weights;
        if (++taps > state.conv.max_taps || stream.at >= state.conv.weight_bytes) return FT_ERROR_FORMAT;
        if (ft_byte(stream.words, stream.at++) == 0u) return FT_ERROR_FORMAT;
        position++;
        if (!next_gap_checked(&stream, &position, state.conv.weight_bytes)) return FT_ERROR_FORMAT;
    }
    return FT_OK;
}

FT_HOT static void pass(ft_conv_state_t *state) {
    gap_stream_t stream = {ft_words_at(state->context->model, state->conv.weights), 0u};
    uint32_t channels = state->context->output.channels, channel = 0;
    ft_taps_t taps = ft_taps(state);
    for (ft_begin_taps(state, channel, &taps);; taps.channel++) {
        next_gap(&stream, &taps.channel);
        while (FT_RARELY(!ft_find_cell(&taps))) {
            ft_conv_taps(state, channel, taps.to);
            if (++channel == channels) return;
            ft_begin_taps(state, channel, &taps);
        }
        ft_put_tap(&taps, (int8_t)ft_byte(stream.words, stream.at++));
    }
}

FT_HOT static void vector(ft_conv_state_t *state) {
    gap_stream_t stream = {ft_words_at(state->context->model, state->conv.weights), 0u};
    const int8_t *in = ft_data(state->context, &state->context->input);
    uint32_t channels = state->context->output.channels, weights = state->weights, position = 0, channel = 0;
    for (int32_t sum = 0;;) {
        next_gap(&stream, &position);
        for (; FT_RARELY(position >= weights); position -= weights, sum = 0) {
            ft_vector_store(state, channel, sum);
            if (++channel == channels) return;
        }
        sum += (int8_t)ft_byte(stream.words, stream.at++) * in[position++];
    }
}

static const ft_conv_way_t way = {FT_CONV_SPARSE, ft_conv_cells, pass, vector};

static void run(ft_context_t *context) { ft_conv_run(context, &way); }

const ft_kernel_t ft_kernel_conv_gap = {check, run};
