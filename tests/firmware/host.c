/* Runs a .ftm model on the host: host MODEL INPUTS OUTPUTS. Prints the status of opening it and the arena's size.
 * Model and arena are heap blocks of exactly the right size, so that a sanitizer sees any byte outside them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fedtiny/ft.h"

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(9);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    void *data = malloc(*size == 0 ? 1 : *size);
    if (data == NULL || fread(data, 1, *size, file) != *size) exit(9);
    fclose(file);
    return data;
}

int main(int argc, char **argv) {
    size_t size, input_size;
    ft_model_t model;
    if (argc != 4) return 9;
    void *blob = read_file(argv[1], &size);
    int8_t *inputs = read_file(argv[2], &input_size);
    ft_status_t status = ft_model_open(&model, blob, size);
    printf("%d\n", (int)status);
    if (status != FT_OK) return 0;
    printf("%lu\n", (unsigned long)ft_arena_size(&model));
    void *arena = malloc(ft_arena_size(&model));
    if (arena == NULL || ft_invoke(&model) != FT_ERROR_ARENA) return 8;
    if (ft_bind(&model, arena, ft_arena_size(&model) - 1u) != FT_ERROR_ARENA) return 8;
    if (ft_bind(&model, arena, ft_arena_size(&model)) != FT_OK) return 8;
    memset(arena, 0x5A, ft_arena_size(&model));
    FILE *out = fopen(argv[3], "wb");
    if (out == NULL) return 9;
    for (size_t at = 0; at + ft_input_bytes(&model) <= input_size; at += ft_input_bytes(&model)) {
        memcpy(ft_input(&model), inputs + at, ft_input_bytes(&model));
        if (ft_invoke(&model) != FT_OK) return 8;
        fwrite(ft_output(&model), 1, ft_output_bytes(&model), out);
    }
    fclose(out);
    free(arena);
    free(inputs);
    free(blob);
    return 0;
}
