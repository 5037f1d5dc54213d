/* Opens a .ftm model with each of its bits flipped, one at a time: flips MODEL. Prints how many there are, how many were
 * refused, and how many of them for their checksum. */
#include <stdio.h>

#include "fedtiny/ft.h"

int main(int argc, char **argv) {
    static uint32_t blob[1 << 14];
    unsigned long bits, refused = 0, by_checksum = 0;
    ft_model_t model;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL) return 9;
    size_t size = fread(blob, 1, sizeof blob, file);
    fclose(file);
    if (ft_model_open(&model, blob, size) != FT_OK) return 8;
    bits = 8ul * size;
    for (unsigned long bit = 0; bit < bits; bit++) {
        uint32_t flipped = (uint32_t)1 << (bit % 32u);
        blob[bit / 32u] ^= flipped;
        ft_status_t status = ft_model_open(&model, blob, size);
        if (status != FT_OK) refused++;
        if (status == FT_ERROR_CHECKSUM) by_checksum++;
        blob[bit / 32u] ^= flipped;
    }
    printf("%lu %lu %lu\n", bits, refused, by_checksum);
    return ft_model_open(&model, blob, size) == FT_OK ? 0 : 7;
}
