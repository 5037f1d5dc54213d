#include "ft_report.h"

#include "model.h"

/* Where text goes, and the checksum of what has gone there. */
typedef struct {
    ft_put_t put;
    uint32_t crc;
} writer_t;

static void write_char(writer_t *writer, char character) {
    writer->put(character);
    writer->crc ^= (uint8_t)character;
    for (int bit = 0; bit < 8; bit++) writer->crc = (writer->crc >> 1) ^ (0xEDB88320u & (0u - (writer->crc & 1u)));
}

static void write_text(writer_t *writer, const char *text) {
    while (*text != '\0') write_char(writer, *text++);
}

static void write_number(writer_t *writer, uint32_t value) {
    char digits[10];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10u);
        value /= 10u;
    } while (value != 0u);
    while (count > 0) write_char(writer, digits[--count]);
}

static void write_signed(writer_t *writer, int32_t value) {
    if (value < 0) write_char(writer, '-');
    write_number(writer, value < 0 ? 0u - (uint32_t)value : (uint32_t)value);
}

static void write_field(writer_t *writer, const char *name, uint32_t value) {
    write_text(writer, ",\"");
    write_text(writer, name);
    write_text(writer, "\":");
    write_number(writer, value);
}

void ft_put_text(ft_put_t put, const char *text) {
    while (*text != '\0') put(*text++);
}

void ft_put_int(ft_put_t put, int32_t value) {
    writer_t writer = {put, 0u};
    write_signed(&writer, value);
}

static void write_difference(ft_put_t put, const ft_selftest_t *selftest) {
    ft_put_text(put, "self-test: vector ");
    ft_put_int(put, (int32_t)selftest->vector);
    ft_put_text(put, " byte ");
    ft_put_int(put, (int32_t)selftest->byte);
    ft_put_text(put, " is ");
    ft_put_int(put, selftest->got);
    ft_put_text(put, ", not ");
    ft_put_int(put, selftest->expected);
    put('\n');
}

void ft_report_write(ft_put_t put, const ft_report_t *report, const ft_selftest_t *selftest) {
    writer_t writer = {put, 0xFFFFFFFFu};
    if (!selftest->passed) write_difference(put, selftest);
    ft_put_text(put, "FEDTINY ");
    write_text(&writer, "{\"schema\":1,\"board\":\"" FT_MODEL_BOARD "\",\"exporter\":\"" FT_MODEL_EXPORTER "\"");
    write_field(&writer, "format", FT_VERSION);
    write_field(&writer, "model_bytes", FT_MODEL_BYTES);
    write_field(&writer, "model_crc32", FT_MODEL_CRC32);
    write_field(&writer, "arena_bytes", FT_MODEL_ARENA_BYTES);
    write_field(&writer, "stack_used", report->stack_used);
    write_field(&writer, "stack_bytes", report->stack_bytes);
    write_field(&writer, "microseconds", report->microseconds);
    write_field(&writer, "vectors", selftest->vectors);
    write_field(&writer, "passed", selftest->passed ? 1u : 0u);
    if (!selftest->passed) {
        write_field(&writer, "vector", selftest->vector);
        write_field(&writer, "byte", selftest->byte);
        write_text(&writer, ",\"expected\":");
        write_signed(&writer, selftest->expected);
        write_text(&writer, ",\"got\":");
        write_signed(&writer, selftest->got);
    }
    write_char(&writer, '}');
    put(' ');
    for (uint32_t shift = 32u; shift > 0u; shift -= 4u) put("0123456789abcdef"[(~writer.crc >> (shift - 4u)) & 15u]);
    put('\n');
}

/* Why, by status from -1 on, each ended by 0. */
static const char reasons[] =
    "misaligned\0cut off\0not a model\0other version\0damaged\0bad format\0kernel missing\0arena too small";

void ft_report_refusal(ft_put_t put, ft_status_t status) {
    const char *reason = reasons;
    for (int other = -1; other > status && reason < reasons + sizeof reasons - 1; reason++) {
        if (*reason == '\0') other--;
    }
    ft_put_text(put, "the model was refused: ");
    ft_put_text(put, reason);
    ft_put_text(put, " (status ");
    ft_put_int(put, status);
    ft_put_text(put, ")\n");
}

void ft_report_answer(ft_put_t put, const int8_t *output) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < FT_MODEL_OUTPUT_BYTES; i++) {
        if (output[i] > output[best]) best = i;
    }
    ft_put_text(put, "answer: output ");
    ft_put_int(put, (int32_t)best);
    ft_put_text(put, " (");
    ft_put_text(put, ft_model_label(best));
    ft_put_text(put, ") with ");
    ft_put_int(put, output[best]);
    put('\n');
}
