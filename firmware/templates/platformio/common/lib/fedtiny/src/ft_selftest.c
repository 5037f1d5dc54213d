#include "ft_selftest.h"

#include "golden.h"
#include "model.h"

/* Vectors are kept as words, because some flashes allow nothing narrower. */
static int8_t byte_of(const uint32_t *words, uint32_t index) {
    return (int8_t)(uint8_t)(words[index / 4u] >> (8u * (index % 4u)));
}

void ft_selftest_vector(uint32_t vector, int8_t *input) {
    const uint32_t *words = ft_golden_inputs + vector * FT_GOLDEN_INPUT_WORDS;
    for (uint32_t i = 0; i < FT_MODEL_INPUT_BYTES; i++) input[i] = byte_of(words, i);
}

static int compare(const ft_model_t *model, ft_selftest_t *result) {
    const uint32_t *words = ft_golden_outputs + result->vector * FT_GOLDEN_OUTPUT_WORDS;
    const int8_t *output = ft_output(model);
    for (uint32_t i = 0; i < FT_MODEL_OUTPUT_BYTES; i++) {
        result->byte = i;
        result->expected = byte_of(words, i);
        result->got = output[i];
        if (result->got != result->expected) return 0;
    }
    return 1;
}

ft_status_t ft_selftest_run(ft_model_t *model, void (*idle)(void), ft_selftest_t *result) {
    result->passed = 0;
    result->vectors = FT_GOLDEN_VECTORS;
    for (result->vector = 0; result->vector < FT_GOLDEN_VECTORS; result->vector++) {
        ft_status_t status;
        ft_selftest_vector(result->vector, ft_input(model));
        do {
            status = ft_step(model);
            if (idle != NULL) idle();
        } while (status == FT_OK);
        if (status != FT_DONE) return status;
        if (!compare(model, result)) return FT_OK;
    }
    result->passed = 1;
    return FT_OK;
}

void ft_selftest_input(int8_t *input) { ft_selftest_vector(0, input); }
