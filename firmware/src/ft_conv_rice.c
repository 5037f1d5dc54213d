/* Convolution with only the non-zero weights stored, each after a Rice code of the number of zeros before it.
 *
 * The stream is bits, the lowest of a word first. Its first byte says how many low bits of a gap are stored as they
 * are; the rest of the gap is as many zeros, ended by a one, that go before them. The value's eight bits follow. The
 * stream ends with a gap that reaches the end of the layer, eight bits where its value would be, and a word more, so
 * that two words can always be read. */
#include "ft_conv.h"

#define MAX_LOW_BITS 15u

/* Where the decoder stands: the next bit. */
typedef struct {
    const uint32_t *words;
    uint32_t at, low;
} rice_stream_t;

/* Read the zeros of a gap and its one, however many there are; returns the bit behind them. */
FT_APART static uint32_t many_zeros(rice_stream_t stream, uint32_t *zeros) {
    uint32_t bits = ft_bits(stream.words, stream.at);
    for (*zeros = 0; bits == 0u; bits = ft_bits(stream.words, stream.at)) {
        stream.at += 32u;
        *zeros += 32u;
    }
    *zeros += ft_lowest_bit(bits);
    return stream.at + ft_lowest_bit(bits) + 1u;
}

/* Add a gap to a position; returns the value behind it, which is no value if the gap reaches the end of the layer. */
static inline int32_t next_gap(rice_stream_t *stream, uint32_t *position) {
    uint32_t low = stream->low, bits = ft_few_bits(stream->words, stream->at);
    uint32_t zeros = ft_lowest_bit(bits | 0x80000000u), length = zeros + low;
    if (FT_RARELY(length > 16u)) {
        uint32_t many, at = many_zeros(*stream, &many);
        bits = ft_few_bits(stream->words, at);
        zeros = many;
        stream->at = at + low + 8u;
    } else {
        bits = bits >> zeros >> 1;
        stream->at += length + 9u;
    }
    /* what is left without the gap's low bits; with the zeros in their place it would be the gap */
    uint32_t rest = bits >> low;
    *position += bits + ((zeros - rest) << low);
    return (int8_t)rest;
}

/* Go past the zeros at which `next_gap` starts, of a stream that nobody has checked yet: 0 if they lead out of it. */
static int gap_inside(const rice_stream_t *stream, uint32_t position, uint32_t words, uint32_t weights) {
    for (uint32_t at = stream->at; position <= weights; at += 32u, position += (uint32_t)32 << stream->low) {
        if (at / 32u + 1u >= words) return 0;
        uint32_t bits = ft_bits(stream->words, at);
        if (bits != 0u) return at + ft_lowest_bit(bits) + 1u + stream->low + 8u <= 32u * (words - 1u);
    }
    return 0;
}

static ft_status_t check(const ft_context_t *context) {
    ft_conv_state_t state;
    ft_status_t status = ft_conv_check(context, &state, FT_CONV_SPARSE);
    if (status != FT_OK) return status;
    if (state.conv.weight_bytes >= (1u << 24) || state.conv.weight_bytes < 8u) return FT_ERROR_FORMAT;
    rice_stream_t stream = {ft_words_at(context->model, state.conv.weights), 8u, 0u};
    stream.low = ft_byte(stream.words, 0u);
    if (stream.low > MAX_LOW_BITS) return FT_ERROR_FORMAT;
    uint32_t weights = state.weights * context->output.channels, end = state.weights, taps = 0;
    uint32_t words = state.conv.weight_bytes / 4u, position = 0;
    for (;;) {
        if (!gap_inside(&stream, position, words, weights)) return FT_ERROR_FORMAT;
        int32_t value = next_gap(&stream, &position);
        if (position >= weights) return FT_OK;
        for (; position >= end; taps = 0) end += state.weights;
        if (value == 0 || ++taps > state.conv.max_taps) return FT_ERROR_FORMAT;
        position++;
    }
}

FT_HOT static void pass(ft_conv_state_t *state) {
    rice_stream_t stream = {ft_words_at(state->context->model, state->conv.weights), 8u, 0u};
    uint32_t channels = state->context->output.channels, channel = 0;
    stream.low = ft_byte(stream.words, 0u);
    ft_taps_t taps = ft_taps(state);
    for (ft_begin_taps(state, channel, &taps);; taps.channel++) {
        int32_t value = next_gap(&stream, &taps.channel);
        while (FT_RARELY(!ft_find_cell(&taps))) {
            ft_conv_taps(state, channel, taps.to);
            if (++channel == channels) return;
            ft_begin_taps(state, channel, &taps);
        }
        ft_put_tap(&taps, value);
    }
}

FT_HOT static void vector(ft_conv_state_t *state) {
    rice_stream_t stream = {ft_words_at(state->context->model, state->conv.weights), 8u, 0u};
    const int8_t *in = ft_data(state->context, &state->context->input);
    uint32_t channels = state->context->output.channels, weights = state->weights, position = 0, channel = 0;
    stream.low = ft_byte(stream.words, 0u);
    for (int32_t sum = 0;;) {
        int32_t value = next_gap(&stream, &position);
        for (; FT_RARELY(position >= weights); position -= weights, sum = 0) {
            ft_vector_store(state, channel, sum);
            if (++channel == channels) return;
        }
        sum += value * in[position++];
    }
}

static const ft_conv_way_t way = {FT_CONV_SPARSE, ft_conv_cells, pass, vector};

static void run(ft_context_t *context) { ft_conv_run(context, &way); }

const ft_kernel_t ft_kernel_conv_rice = {check, run};
