/* Runs the fuzz target without libFuzzer: replay COUNT SEED... makes COUNT mutations of the seeds, always the same ones.
 * It needs no clang, and it is what line coverage is measured with. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fedtiny/ft.h"

enum { MOST = 1 << 14, MOST_SEEDS = 64 };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t state = 1u;
static uint32_t below(uint32_t count) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)state * count) >> 32);
}

/* One byte changed, or the end cut off. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most) {
    (void)most;
    if (size == 0u) return 0u;
    if (below(4u) == 0u) return below((uint32_t)size);
    data[below((uint32_t)size)] = (uint8_t)below(256u);
    return size;
}

/* What the fuzz target never does: calls in the wrong order and with the wrong memory. */
static int wrong_calls(const uint32_t *blob, size_t size) {
    static uint32_t arena[MOST];
    ft_model_t model;
    if (ft_model_open(NULL, blob, size) != FT_ERROR_ARGUMENT || ft_model_open(&model, NULL, size) != FT_ERROR_ARGUMENT) return 1;
    if (ft_model_open(&model, (const uint8_t *)blob + 1, size) != FT_ERROR_ARGUMENT) return 1;
    if (ft_model_open(&model, blob, size) != FT_OK || ft_invoke(&model) != FT_ERROR_ARENA) return 1;
    if (ft_bind(&model, NULL, sizeof arena) != FT_ERROR_ARGUMENT) return 1;
    return ft_bind(&model, arena, ft_arena_size(&model) - 1u) != FT_ERROR_ARENA;
}

int main(int argc, char **argv) {
    static uint32_t seeds[MOST_SEEDS][MOST / 4], changed[MOST / 4];
    size_t sizes[MOST_SEEDS];
    uint32_t count = (uint32_t)argc - 2u;
    if (argc < 3 || count > MOST_SEEDS) return 9;
    for (uint32_t i = 0; i < count; i++) {
        FILE *file = fopen(argv[2 + i], "rb");
        if (file == NULL) return 9;
        sizes[i] = fread(seeds[i], 1, MOST, file);
        fclose(file);
        (void)LLVMFuzzerTestOneInput((const uint8_t *)seeds[i], sizes[i]);
        if (wrong_calls(seeds[i], sizes[i])) return 8;
    }
    for (long left = atol(argv[1]); left > 0; left--) {
        uint32_t seed = below(count);
        memcpy(changed, seeds[seed], sizes[seed]);
        size_t size = LLVMFuzzerCustomMutator((uint8_t *)changed, sizes[seed], MOST, state);
        if (below(3u) == 0u) size = LLVMFuzzerCustomMutator((uint8_t *)changed, size, MOST, state + 1u);
        (void)LLVMFuzzerTestOneInput((const uint8_t *)changed, size);
    }
    return 0;
}
