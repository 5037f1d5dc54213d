/* A libFuzzer target for the runtime: whatever a .ftm file holds, it is refused, or it runs within its arena.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I firmware/include
 *         firmware/src/[files] tests/fuzz/model.c -o fuzz
 *
 * The checksum is made right after nearly every mutation, or nothing behind it would ever be tried. Model and arena are
 * heap blocks of exactly the right size, so that the address sanitizer sees any byte outside them. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fedtiny/ft.h"

enum { MOST_ARENA = 1 << 20, MOST_BYTES = 1 << 16, RECORD_WORDS = 10 };
#define MOST_WORK 200000u /* products of one run: a network that takes a minute shows nothing new */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t crc32_of(const uint8_t *bytes, size_t count) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* Mutations. The state of the generator is all there is; the fuzzer gives a new seed each time. */
typedef struct {
    uint32_t state;
    uint8_t *data;
    size_t size;
} mutation_t;

static uint32_t below(mutation_t *m, uint32_t count) {
    m->state = m->state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)m->state * count) >> 32);
}

static ft_header_t header_of(const mutation_t *m) {
    ft_header_t header;
    memcpy(&header, m->data, sizeof header);
    return header;
}

/* A number that breaks things: a border, a neighbour of what is there, or a power of two. */
static uint32_t odd_number(mutation_t *m, uint32_t now) {
    switch (below(m, 6u)) {
    case 0: return 0u - below(m, 3u);
    case 1: return now + 1u - 2u * below(m, 2u);
    case 2: return (uint32_t)1 << below(m, 32u);
    case 3: return ((uint32_t)1 << below(m, 32u)) - 1u;
    case 4: return now ^ ((uint32_t)1 << below(m, 32u));
    default: return below(m, 20u);
    }
}

/* Change one number of 1, 2 or 4 bytes among the `bytes` bytes at `at`. */
static void change_number(mutation_t *m, uint64_t at, uint32_t bytes) {
    uint32_t width = (uint32_t)1 << below(m, 3u), now = 0;
    at += below(m, bytes / width) * width;
    if (at + width > m->size) return;
    memcpy(&now, m->data + at, width);
    now = odd_number(m, now);
    memcpy(m->data + at, &now, width);
}

static void change_record(mutation_t *m) {
    ft_header_t header = header_of(m);
    uint64_t op_at = header.ops + (uint64_t)below(m, header.op_count) * FT_OP_BYTES;
    ft_op_t op;
    switch (below(m, 4u)) {
    case 0: change_number(m, 0u, FT_HEADER_BYTES); break;
    case 1: change_number(m, header.tensors + (uint64_t)below(m, header.tensor_count) * FT_TENSOR_BYTES, FT_TENSOR_BYTES); break;
    case 2: change_number(m, op_at, FT_OP_BYTES); break;
    default:
        if (op_at + sizeof op > m->size) return;
        memcpy(&op, m->data + op_at, sizeof op);
        change_number(m, op.params, 4u * RECORD_WORDS);
    }
}

static void seal(mutation_t *m) {
    ft_header_t header = header_of(m);
    header.magic = FT_MAGIC;
    header.version = FT_VERSION;
    header.header_bytes = FT_HEADER_BYTES;
    if (below(m, 20u) != 0u) header.total_bytes = (uint32_t)m->size;
    size_t covered = header.total_bytes < m->size ? header.total_bytes : m->size;
    memcpy(m->data, &header, sizeof header);
    if (covered > FT_CRC_FROM) header.crc32 = crc32_of(m->data + FT_CRC_FROM, covered - FT_CRC_FROM);
    memcpy(m->data, &header, sizeof header);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    mutation_t m = {seed, data, size};
    if (size < FT_HEADER_BYTES || below(&m, 8u) == 0u) m.size = LLVMFuzzerMutate(data, size, most);
    if (m.size < FT_HEADER_BYTES) return m.size;
    for (uint32_t count = 1u + below(&m, 3u); count > 0u; count--) {
        if (below(&m, 4u) == 0u) change_number(&m, FT_HEADER_BYTES, (uint32_t)(m.size - FT_HEADER_BYTES) | 4u);
        else change_record(&m);
    }
    if (below(&m, 4u) == 0u) m.size -= m.size % 4u;
    if (m.size >= FT_HEADER_BYTES && below(&m, 50u) != 0u) seal(&m);
    return m.size;
}

/* At most how many products the operators of an accepted model take. */
static uint64_t work_of(const uint8_t *data) {
    ft_header_t header;
    uint64_t total = 0;
    memcpy(&header, data, sizeof header);
    for (uint32_t i = 0; i < header.op_count; i++) {
        ft_op_t op;
        ft_tensor_t in, out;
        memcpy(&op, data + header.ops + i * FT_OP_BYTES, sizeof op);
        memcpy(&in, data + header.tensors + op.input * FT_TENSOR_BYTES, sizeof in);
        memcpy(&out, data + header.tensors + op.output * FT_TENSOR_BYTES, sizeof out);
        /* these records begin with the size of a window */
        int window = op.kernel <= FT_KERNEL_CONV_GAP || op.kernel == FT_KERNEL_CONV_RICE ||
                     op.kernel == FT_KERNEL_DEPTHWISE || op.kernel == FT_KERNEL_POOL;
        uint64_t reach = window ? (uint64_t)data[op.params] * data[op.params + 1u] + 1u : 1u;
        total += (uint64_t)out.height * out.width * out.channels * in.channels * reach;
        total += (uint64_t)in.height * in.width * in.channels;
    }
    return total;
}

/* Any input will do, but not the same everywhere. */
static void fill(int8_t *to, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = (int8_t)(i * 37u + 11u);
}

static void run(ft_model_t *model, void *arena) {
    if (ft_bind(model, arena, ft_arena_size(model)) != FT_OK) abort();
    fill(ft_input(model), ft_input_bytes(model));
    if (ft_invoke(model) != FT_OK) abort();
    volatile int8_t last = ft_output(model)[ft_output_bytes(model) - 1u];
    (void)last;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ft_model_t model;
    void *blob = malloc(size == 0u ? 1u : size);
    if (blob == NULL) abort();
    memcpy(blob, data, size);
    int good = ft_model_open(&model, blob, size) == FT_OK;
    if (good && ft_arena_size(&model) <= MOST_ARENA && work_of(data) <= MOST_WORK) {
        void *arena = malloc(ft_arena_size(&model));
        if (arena == NULL) abort();
        memset(arena, 0x5A, ft_arena_size(&model));
        run(&model, arena);
        free(arena);
    }
    free(blob);
    return 0;
}
