/* Opening a model: every offset, count and stream is checked here, once, so that running can trust them. */
#include <string.h>

#include "ft_internal.h"

int ft_inside(const ft_model_t *model, uint32_t offset, uint32_t bytes) {
    uint32_t total = model->header.total_bytes;
    return offset % 4u == 0u && offset <= total && bytes <= total - offset;
}

void ft_read(const ft_model_t *model, uint32_t offset, void *record, uint32_t bytes) {
    const uint32_t *from = ft_words_at(model, offset);
    uint8_t *to = record;
    for (uint32_t i = 0; i < bytes / 4u; i++) {
        uint32_t word = from[i];
        memcpy(to + 4u * i, &word, 4u);
    }
}

void ft_read_op(const ft_model_t *model, uint32_t index, ft_context_t *context) {
    const ft_header_t *header = &model->header;
    context->model = model;
    context->row = context->filled = 0u;
    context->available = UINT32_MAX;
    ft_read(model, header->ops + index * FT_OP_BYTES, &context->op, FT_OP_BYTES);
    uint32_t second = context->op.input2 == FT_NO_TENSOR ? context->op.input : context->op.input2;
    ft_read(model, header->tensors + context->op.input * FT_TENSOR_BYTES, &context->input, FT_TENSOR_BYTES);
    ft_read(model, header->tensors + second * FT_TENSOR_BYTES, &context->input2, FT_TENSOR_BYTES);
    ft_read(model, header->tensors + context->op.output * FT_TENSOR_BYTES, &context->output, FT_TENSOR_BYTES);
}

/* CRC-32 (IEEE 802.3), four bits a step: a 64-byte table is the cheapest that is not slow. */
static uint32_t crc32(const uint32_t *words, uint32_t from, uint32_t to) {
    static const uint32_t table[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
        0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu,
    };
    uint32_t crc = 0xFFFFFFFFu;
    for (uint32_t i = from; i < to; i++) {
        crc ^= ft_byte(words, i);
        crc = (crc >> 4) ^ table[crc & 15u];
        crc = (crc >> 4) ^ table[crc & 15u];
    }
    return ~crc;
}

static ft_status_t check_header(ft_model_t *model, size_t size) {
    ft_header_t *header = &model->header;
    if (header->magic != FT_MAGIC) return FT_ERROR_MAGIC;
    if (header->version != FT_VERSION) return FT_ERROR_VERSION;
    if (header->total_bytes > size) return FT_ERROR_TRUNCATED;
    if (header->header_bytes != FT_HEADER_BYTES || header->total_bytes < FT_HEADER_BYTES) return FT_ERROR_FORMAT;
    if (crc32(model->words, FT_CRC_FROM, header->total_bytes) != header->crc32) return FT_ERROR_CHECKSUM;
    if (header->total_bytes % 4u != 0u || header->op_count == 0u) return FT_ERROR_FORMAT;
    if (header->input >= header->tensor_count || header->output >= header->tensor_count) return FT_ERROR_FORMAT;
    if (!ft_inside(model, header->tensors, header->tensor_count * FT_TENSOR_BYTES)) return FT_ERROR_FORMAT;
    if (!ft_inside(model, header->ops, header->op_count * FT_OP_BYTES)) return FT_ERROR_FORMAT;
    return FT_OK;
}

static ft_status_t check_tensor(const ft_model_t *model, uint32_t index) {
    ft_tensor_t tensor;
    ft_read(model, model->header.tensors + index * FT_TENSOR_BYTES, &tensor, FT_TENSOR_BYTES);
    uint64_t bytes = (uint64_t)tensor.rows * tensor.width * tensor.channels;
    if (bytes == 0u || tensor.rows > tensor.height || tensor.offset + bytes > model->header.arena_bytes) return FT_ERROR_FORMAT;
    if (tensor.zero_point < -128 || tensor.zero_point > 127) return FT_ERROR_FORMAT;
    return FT_OK;
}

static int apart(uint32_t a, uint32_t a_bytes, uint32_t b, uint32_t b_bytes) {
    return a + a_bytes <= b || b + b_bytes <= a;
}

/* Kernels trust what they put into their scratch. An output may share bytes with an input: what is read there is
 * the exporter's care, and never leads outside the arena. */
static int disturbs(const ft_context_t *writer, const ft_op_t *op) {
    return !apart(writer->output.offset, ft_tensor_bytes(&writer->output), op->scratch, op->scratch_bytes);
}

/* Rows can only be handed from one operator to the next, and operators that do so run in turns: none may write into
 * the scratch of another. */
static int chain_ok(const ft_model_t *model, uint32_t index, const ft_context_t *context) {
    ft_context_t other;
    const ft_op_t *op = &context->op;
    int handed = 0;
    if (op->streamed > 1u || (op->streamed && index + 1u == model->header.op_count)) return 0;
    for (uint32_t back = 1; back <= index; back++) {
        ft_read_op(model, index - back, &other);
        if (!other.op.streamed) break;
        if (back == FT_MAX_CHAIN || disturbs(context, &other.op) || disturbs(&other, op)) return 0;
        if (!apart(op->scratch, op->scratch_bytes, other.op.scratch, other.op.scratch_bytes)) return 0;
        if (back > 1u) continue;
        handed = other.op.output == op->input ? 1 : other.op.output == op->input2 ? 2 : 0;
        if (handed == 0) return 0;
    }
    int whole = context->input.rows == context->input.height, whole2 = context->input2.rows == context->input2.height;
    if (handed == 1) return whole2 || op->input2 == FT_NO_TENSOR || op->input2 == op->input;
    return whole && (whole2 || handed == 2);
}

static ft_status_t check_op(const ft_model_t *model, uint32_t index) {
    const ft_header_t *header = &model->header;
    ft_context_t context;
    ft_op_t *op = &context.op;
    ft_read(model, header->ops + index * FT_OP_BYTES, op, FT_OP_BYTES);
    if (op->input >= header->tensor_count || op->output >= header->tensor_count) return FT_ERROR_FORMAT;
    if (op->input2 != FT_NO_TENSOR && op->input2 >= header->tensor_count) return FT_ERROR_FORMAT;
    if (op->kernel >= 32u || !((header->kernels >> op->kernel) & 1u)) return FT_ERROR_FORMAT;
    if (op->scratch % 4u != 0u || op->scratch > header->arena_bytes) return FT_ERROR_FORMAT;
    if (op->scratch_bytes > header->arena_bytes - op->scratch) return FT_ERROR_FORMAT;
    ft_read_op(model, index, &context);
    if (disturbs(&context, op) || !chain_ok(model, index, &context)) return FT_ERROR_FORMAT;
    if (!op->streamed && context.output.rows != context.output.height) return FT_ERROR_FORMAT;
    return ft_kernels[op->kernel]->check(&context);
}

/* What the caller fills and reads is there as a whole. */
static int whole(const ft_model_t *model, uint32_t index) {
    ft_tensor_t tensor;
    ft_read(model, model->header.tensors + index * FT_TENSOR_BYTES, &tensor, FT_TENSOR_BYTES);
    return tensor.rows == tensor.height;
}

ft_status_t ft_model_open(ft_model_t *model, const void *blob, size_t size) {
    if (model == NULL || blob == NULL || (uintptr_t)blob % 4u != 0u) return FT_ERROR_ARGUMENT;
    if (size < FT_HEADER_BYTES) return FT_ERROR_TRUNCATED;
    memset(model, 0, sizeof *model);
    model->words = blob;
    ft_read(model, 0u, &model->header, FT_HEADER_BYTES);
    ft_status_t status = check_header(model, size);
    for (uint32_t i = 0; status == FT_OK && i < 32u; i++) {
        int needed = (int)((model->header.kernels >> i) & 1u);
        if (needed && (i >= FT_KERNEL_COUNT || ft_kernels[i] == NULL)) status = FT_ERROR_KERNEL;
    }
    for (uint32_t i = 0; status == FT_OK && i < model->header.tensor_count; i++) status = check_tensor(model, i);
    for (uint32_t i = 0; status == FT_OK && i < model->header.op_count; i++) status = check_op(model, i);
    if (status == FT_OK && (!whole(model, model->header.input) || !whole(model, model->header.output)))
        status = FT_ERROR_FORMAT;
    return status;
}

size_t ft_arena_size(const ft_model_t *model) { return model->header.arena_bytes; }
