/* Convolution with only the non-zero weights stored, each after a byte that says how many zeros precede it.
 *
 * The stream runs through the whole layer, output channel after output channel. A gap of FT_GAP_SKIP moves on
 * by that many weights and has no value; the stream ends with a gap that reaches the end of the layer. */
#include "ft_conv.h"

/* Where the decoder stands: the next byte to read, and the flat position of the next non-zero weight. */
typedef struct {
    const uint32_t *words;
    uint32_t at;
    uint32_t position;
} gap_stream_t;

static void next_gap(gap_stream_t *stream) {
    uint32_t gap;
    do {
        gap = ft_byte(stream->words, stream->at++);
        stream->position += gap;
    } while (gap == FT_GAP_SKIP);
}

/* As next_gap, but of a stream that nobody has checked yet. */
static int next_gap_checked(gap_stream_t *stream, uint32_t bytes) {
    uint32_t gap;
    do {
        if (stream->at >= bytes) return 0;
        gap = ft_byte(stream->words, stream->at++);
        stream->position += gap;
    } while (gap == FT_GAP_SKIP);
    return 1;
}

static ft_status_t check(const ft_context_t *context) {
    ft_conv_t conv;
    uint32_t weights;
    ft_status_t status = ft_conv_check(context, &conv, &weights);
    if (status != FT_OK) return status;
    if (conv.weight_bytes >= (1u << 24)) return FT_ERROR_FORMAT;
    gap_stream_t stream = {ft_words_at(context->model, conv.weights), 0u, 0u};
    uint32_t per_channel = weights / context->output.channels, end = per_channel, taps = 0;
    if (!next_gap_checked(&stream, conv.weight_bytes)) return FT_ERROR_FORMAT;
    while (stream.position < weights) {
        while (stream.position >= end) {
            end += per_channel;
            taps = 0;
        }
        if (++taps > conv.max_taps || ++stream.at > conv.weight_bytes) return FT_ERROR_FORMAT;
        stream.position++;
        if (!next_gap_checked(&stream, conv.weight_bytes)) return FT_ERROR_FORMAT;
    }
    return FT_OK;
}

/* Decode one output channel, whose weights start at flat position `start`, into taps. */
FT_HOT static uint32_t decode(gap_stream_t *stream, const ft_conv_row_t *row, uint32_t start, uint32_t end) {
    uint32_t *tap = row->taps, line = 0, line_end = start + row->run, shift = row->row[0] - start;
    while (stream->position < end) {
        while (stream->position >= line_end) {
            line++;
            shift = row->row[line] - line_end;
            line_end += row->run;
        }
        *tap++ = ft_tap(stream->position + shift, ft_byte(stream->words, stream->at++));
        stream->position++;
        next_gap(stream);
    }
    return (uint32_t)(tap - row->taps);
}

static void gap_row(const ft_conv_row_t *row) {
    gap_stream_t stream = {ft_words_at(row->context->model, row->conv.weights), 0u, 0u};
    uint32_t channels = row->context->output.channels, size = row->run * row->conv.kernel_height;
    next_gap(&stream);
    for (uint32_t channel = 0; channel < channels; channel++) {
        uint32_t count = decode(&stream, row, channel * size, (channel + 1u) * size);
        ft_conv_taps(row, channel, count);
    }
}

static void run(const ft_context_t *context) { ft_conv_run(context, gap_row); }

const ft_kernel_t ft_kernel_conv_gap = {check, run};
