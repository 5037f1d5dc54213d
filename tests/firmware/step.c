/* Runs a .ftm model on the host step by step: step MODEL INPUTS. Every sample of INPUTS is invoked, then stepped, and
 * the results compared. Prints the number of steps of one run. Any other end is a failure, told by its number. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fedtiny/ft.h"

#define MUST(condition, code) \
    do { \
        if (!(condition)) return code; \
    } while (0)

enum { MOST = 1 << 20 };
static uint32_t blob[MOST / 4];
static uint8_t arena[MOST], before[MOST];
static int8_t inputs[MOST], expected[MOST];

static size_t read_file(const char *path, void *to) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(99);
    size_t size = fread(to, 1, MOST, file);
    fclose(file);
    return size;
}

/* Every call that fails leaves the arena and the model's state alone. */
static int check_errors(ft_model_t *model, size_t size) {
    memset(arena, 0x5A, sizeof arena);
    memcpy(before, arena, sizeof arena);
    MUST(ft_step(model) == FT_ERROR_ARENA && ft_invoke(model) == FT_ERROR_ARENA, 10);
    MUST(ft_input(model) == NULL && ft_output(model) == NULL, 11);
    MUST(ft_bind(model, arena, size - 1u) == FT_ERROR_ARENA, 12);
    MUST(ft_bind(model, arena + 2, size) == FT_ERROR_ARGUMENT && ft_bind(model, NULL, size) == FT_ERROR_ARGUMENT, 13);
    MUST(ft_step(model) == FT_ERROR_ARENA, 14);
    MUST(memcmp(arena, before, sizeof arena) == 0, 15);
    return 0;
}

/* Returns the number of steps until FT_DONE, or a negative number. */
static int step_through(ft_model_t *model) {
    for (int steps = 1; steps < 1000; steps++) {
        ft_status_t status = ft_step(model);
        if (status == FT_DONE) return steps;
        if (status != FT_OK) return -1;
    }
    return -1;
}

static int compare(ft_model_t *model, const int8_t *input, int *steps) {
    size_t in = ft_input_bytes(model), out = ft_output_bytes(model);
    memcpy(ft_input(model), input, in);
    MUST(ft_invoke(model) == FT_OK, 20);
    memcpy(expected, ft_output(model), out);
    memset(arena, 0x5A, ft_arena_size(model));
    memcpy(ft_input(model), input, in);
    *steps = step_through(model);
    MUST(*steps > 0 && memcmp(ft_output(model), expected, out) == 0, 21);
    /* a run that was left half way is forgotten by ft_invoke and by ft_bind */
    memcpy(ft_input(model), input, in);
    MUST(*steps == 1 || ft_step(model) == FT_OK, 22);
    memcpy(ft_input(model), input, in);
    MUST(ft_invoke(model) == FT_OK && memcmp(ft_output(model), expected, out) == 0, 23);
    MUST(*steps == 1 || ft_step(model) == FT_OK, 24);
    MUST(ft_bind(model, arena, ft_arena_size(model)) == FT_OK, 25);
    memcpy(ft_input(model), input, in);
    MUST(step_through(model) == *steps && memcmp(ft_output(model), expected, out) == 0, 26);
    return 0;
}

int main(int argc, char **argv) {
    ft_model_t model;
    MUST(argc == 3, 1);
    size_t bytes = read_file(argv[1], blob), samples = read_file(argv[2], inputs);
    MUST(ft_model_open(&model, blob, bytes) == FT_OK, 2);
    size_t size = ft_arena_size(&model), in = ft_input_bytes(&model);
    MUST(size <= sizeof arena && in > 0 && samples >= in, 3);
    int failed = check_errors(&model, size), steps = 0;
    MUST(failed == 0, failed);
    MUST(ft_bind(&model, arena, size) == FT_OK, 4);
    for (size_t at = 0; at + in <= samples; at += in) {
        failed = compare(&model, inputs + at, &steps);
        MUST(failed == 0, failed);
    }
    for (size_t i = size; i < sizeof arena; i++) MUST(arena[i] == 0x5A, 5);
    printf("%d\n", steps);
    return 0;
}
