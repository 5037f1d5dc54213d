/* fedtiny's runtime: runs an int8 network straight from a packed .ftm model.
 *
 * The caller owns all memory: the model's bytes, the arena and this struct. Nothing is allocated, nothing is
 * written outside the arena and the struct, and there is no global state, so any number of models can be open.
 * Functions return FT_OK (0) or above on success and a negative ft_status_t on failure.
 *
 *     static ft_model_t model;
 *     ft_model_open(&model, blob, blob_bytes);          checks everything once
 *     ft_bind(&model, arena, sizeof arena);
 *     memcpy(ft_input(&model), sample, ft_input_bytes(&model));
 *     ft_invoke(&model);
 *     use(ft_output(&model), ft_output_bytes(&model));
 */
#ifndef FT_H
#define FT_H

#include <stddef.h>
#include <stdint.h>

#include "ft_abi.h"
#include "ft_config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An open model. Its fields belong to the runtime. */
typedef struct ft_model {
    const uint32_t *words; /* the .ftm bytes */
    ft_header_t header;
    uint8_t *arena;
    uint16_t next_op;
} ft_model_t;

/* Check a model of `size` bytes at `blob` (4-byte aligned, readable as long as the model is used) and prepare
 * `model`. FT_ERROR_ARGUMENT, _TRUNCATED, _MAGIC, _VERSION, _CHECKSUM, _FORMAT or _KERNEL if it is refused;
 * `model` must not be used then. */
ft_status_t ft_model_open(ft_model_t *model, const void *blob, size_t size);

/* RAM the model needs: exactly this many bytes, at a 4-byte aligned address. */
size_t ft_arena_size(const ft_model_t *model);

/* Lend `size` bytes at `arena` to the model; its content may be anything. FT_ERROR_ARENA if too small,
 * FT_ERROR_ARGUMENT if null or misaligned. */
ft_status_t ft_bind(ft_model_t *model, void *arena, size_t size);

/* Where to write the input and read the output: int8, rows of pixels of channels. Null before ft_bind. The
 * memory is reused while the model runs: write the whole input before each ft_invoke. */
int8_t *ft_input(const ft_model_t *model);
const int8_t *ft_output(const ft_model_t *model);
size_t ft_input_bytes(const ft_model_t *model);
size_t ft_output_bytes(const ft_model_t *model);

/* Run the whole network, from the first operator whatever ft_step has done before. FT_OK, or FT_ERROR_ARENA if no
 * arena is bound; then nothing is written. */
ft_status_t ft_invoke(ft_model_t *model);

/* Run one operator, or a few that hand rows to one another: FT_OK while there are more, FT_DONE after the last; the
 * next call starts over, as the first after ft_bind does. Nothing may be written to the arena between a call that
 * returned FT_OK and the next. FT_ERROR_ARENA if no arena is bound; then nothing is written. */
ft_status_t ft_step(ft_model_t *model);

/* The kernels this firmware links, indexed by FT_KERNEL_*; a null entry is a kernel left out. Exactly one
 * file of a firmware defines the table: the generated ft_kernels.c of a project, or ft_kernels_all.c. */
struct ft_context;
typedef struct ft_kernel {
    ft_status_t (*check)(const struct ft_context *context); /* once, from ft_model_open */
    void (*run)(struct ft_context *context); /* makes some more rows; trusts what check has passed */
} ft_kernel_t;
extern const ft_kernel_t *const ft_kernels[FT_KERNEL_COUNT];
extern const ft_kernel_t ft_kernel_conv_dense, ft_kernel_conv_bitmap, ft_kernel_conv_gap, ft_kernel_conv_rice;
extern const ft_kernel_t ft_kernel_add, ft_kernel_mean, ft_kernel_depthwise, ft_kernel_pool, ft_kernel_softmax;
extern const ft_kernel_t ft_kernel_table, ft_kernel_mul, ft_kernel_place, ft_kernel_resize, ft_kernel_vector;

#ifdef __cplusplus
}
#endif
#endif
