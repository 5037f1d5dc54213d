/* Convolution with only the non-zero weights stored, each after a Rice code of the number of zeros before it.
 *
 * The stream is bits, the lowest of a word first. Its first byte says how many low bits of a gap are stored as they
 * are; the rest of the gap is as many zeros, ended by a one, that go before them. The value's eight bits follow. The
 * stream ends with a gap that reaches the end of the layer, eight bits where its value would be, and a word more, so
 * that two words can always be read. */
#include "ft_conv.h"

#define MAX_LOW_BITS 15u

/* Where the decoder stands: the next bit, and the flat position of the next non-zero weight. */
typedef struct {
    const uint32_t *words;
    uint32_t at, low;
    uint32_t position;
} rice_stream_t;

/* Read a gap; returns the value behind it, which is no value if the gap reaches the end of the layer. */
static inline uint32_t next_gap(rice_stream_t *stream) {
    uint32_t bits = ft_bits(stream->words, stream->at);
    for (; FT_RARELY(bits == 0u); bits = ft_bits(stream->words, stream->at)) {
        stream->at += 32u;
        stream->position += (uint32_t)32 << stream->low;
    }
    uint32_t zeros = ft_lowest_bit(bits);
    stream->at += zeros + 1u;
    bits = FT_RARELY(zeros + stream->low > 23u) ? ft_bits(stream->words, stream->at) : bits >> zeros >> 1;
    stream->position += (zeros << stream->low) + (bits & (((uint32_t)1 << stream->low) - 1u));
    stream->at += stream->low;
    return bits >> stream->low & 0xFFu;
}

/* Go past the zeros at which `next_gap` starts, of a stream that nobody has checked yet: 0 if they lead out of it. */
static int gap_inside(const rice_stream_t *stream, uint32_t words, uint32_t weights) {
    uint32_t position = stream->position;
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
    rice_stream_t stream = {ft_words_at(context->model, state.conv.weights), 8u, 0u, 0u};
    stream.low = ft_byte(stream.words, 0u);
    if (stream.low > MAX_LOW_BITS) return FT_ERROR_FORMAT;
    uint32_t weights = state.weights * context->output.channels, end = state.weights, taps = 0;
    uint32_t words = state.conv.weight_bytes / 4u;
    for (;;) {
        if (!gap_inside(&stream, words, weights)) return FT_ERROR_FORMAT;
        uint32_t value = next_gap(&stream);
        if (stream.position >= weights) return FT_OK;
        for (; stream.position >= end; taps = 0) end += state.weights;
        if (value == 0u || ++taps > state.conv.max_taps) return FT_ERROR_FORMAT;
        stream.at += 8u;
        stream.position++;
    }
}

FT_HOT static void pass(ft_conv_state_t *state) {
    rice_stream_t stream = {ft_words_at(state->context->model, state->conv.weights), 8u, 0u, 0u};
    uint32_t channels = state->context->output.channels, start = 0, *list = ft_conv_list(state);
    stream.low = ft_byte(stream.words, 0u);
    uint32_t value = next_gap(&stream);
    for (uint32_t channel = 0; channel < channels; channel++, start += state->weights) {
        uint32_t *to = list, end = start + state->weights;
        while (stream.position < end) {
            *to++ = (stream.position - start) << 8 | value;
            stream.at += 8u;
            stream.position++;
            value = next_gap(&stream);
        }
        ft_conv_taps(state, channel, list, to);
    }
}

static void run(ft_context_t *context) { ft_conv_run(context, FT_CONV_SPARSE, ft_conv_cells, pass); }

const ft_kernel_t ft_kernel_conv_rice = {check, run};
