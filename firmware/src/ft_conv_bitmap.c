/* Convolution with one bit for every weight of the layer and one byte for every non-zero one.
 *
 * First the bits, flat over the layer, lowest bit first, in whole words with zeros after the end; then the
 * values in the same order. */
#include "ft_conv.h"

/* Where the decoder stands: the next bit of the layer and the next value byte. */
typedef struct {
    const uint32_t *bits;
    const uint32_t *values;
    uint32_t value;
} bitmap_stream_t;

static uint32_t bitmap_words(uint32_t weights) { return (weights + 31u) / 32u; }

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_SPARSE);
    if (status != FT_OK) return status;
    uint32_t weights = state.weights * context->output.channels, words = bitmap_words(weights), values = 0, taps = 0;
    uint32_t end = state.weights;
    if (state.conv.weight_bytes < 4u * words) return FT_ERROR_FORMAT;
    const uint32_t *bits = ft_words_at(context->model, state.conv.weights);
    for (uint32_t i = 0; i < 32u * words; i++) {
        if (!((bits[i / 32u] >> (i % 32u)) & 1u)) continue;
        if (i >= weights) return FT_ERROR_FORMAT;
        for (; i >= end; taps = 0) end += state.weights;
        values++;
        if (++taps > state.conv.max_taps) return FT_ERROR_FORMAT;
    }
    if (values > state.conv.weight_bytes - 4u * words) return FT_ERROR_FORMAT;
    while (values > 0u)
        if (ft_byte(bits + words, --values) == 0u) return FT_ERROR_FORMAT;
    return FT_OK;
}

/* The bits of the layer from `at` to the end of its word or to `end`, whichever comes first; there `stop` is. */
static inline uint32_t bits_from(const bitmap_stream_t *stream, uint32_t at, uint32_t end, uint32_t *stop) {
    uint32_t bits = stream->bits[at / 32u] >> (at % 32u);
    *stop = (at | 31u) + 1u;
    if (*stop > end) {
        bits &= ((uint32_t)1 << (end - at)) - 1u;
        *stop = end;
    }
    return bits;
}

/* Decode one output channel, whose weights are those from flat position `at` to `end`. */
FT_HOT static void decode(bitmap_stream_t *stream, uint32_t at, uint32_t end, ft_taps_t *to) {
    ft_taps_t taps = *to;
    uint32_t ahead = taps.channel - at;
    for (uint32_t stop; at < end; at = stop) {
        for (uint32_t bits = bits_from(stream, at, end, &stop); bits != 0u; bits &= bits - 1u) {
            uint32_t position = at + ft_lowest_bit(bits);
            taps.channel = position + ahead;
            (void)ft_find_cell(&taps);
            ahead = taps.channel - position;
            ft_put_tap(&taps, (int8_t)ft_byte(stream->values, stream->value++));
        }
    }
    to->to = taps.to;
}

static bitmap_stream_t stream_of(const ft_conv_state_t *state) {
    const uint32_t *bits = ft_words_at(state->context->model, state->conv.weights);
    bitmap_stream_t stream = {bits, bits + bitmap_words(state->context->output.channels * state->weights), 0u};
    return stream;
}

static void pass(ft_conv_state_t *state) {
    uint32_t channels = state->context->output.channels;
    bitmap_stream_t stream = stream_of(state);
    ft_taps_t taps = ft_taps(state);
    for (uint32_t channel = 0, at = 0; channel < channels; channel++, at += state->weights) {
        ft_begin_taps(state, channel, &taps);
        decode(&stream, at, at + state->weights, &taps);
        ft_conv_taps(state, channel, taps.to);
    }
}

FT_HOT static void vector(ft_conv_state_t *state) {
    const int8_t *in = ft_data(state->context, &state->context->input);
    uint32_t channels = state->context->output.channels, start = 0, stop;
    bitmap_stream_t stream = stream_of(state);
    for (uint32_t channel = 0; channel < channels; channel++, start += state->weights) {
        int32_t sum = 0;
        for (uint32_t at = start, end = start + state->weights; at < end; at = stop)
            for (uint32_t bits = bits_from(&stream, at, end, &stop); bits != 0u; bits &= bits - 1u)
                sum += (int8_t)ft_byte(stream.values, stream.value++) * in[at - start + ft_lowest_bit(bits)];
        ft_vector_store(state, channel, sum);
    }
}

static const ft_conv_way_t way = {FT_CONV_SPARSE, ft_conv_cells, pass, vector};

static void run(ft_context_t *context) { ft_conv_run(context, &way); }

const ft_kernel_t ft_kernel_conv_bitmap = {check, run};
