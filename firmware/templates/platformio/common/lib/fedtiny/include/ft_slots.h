/* A new model in the field: two slots of flash, of which one always holds a model that works.
 *
 * A model goes into the slot that is not in use, is checked there, and only then gets its record; until the record's last
 * byte is written the other slot counts. Losing power at any moment leaves a working model. No flash unit is programmed
 * twice between erasures, as flash with error correction demands.
 *
 *     ft_slots_open(&slots, &model)            at boot; else open the model that the firmware brought along
 *     ft_slots_begin(&slots, bytes)            erases the other slot
 *     ft_slots_write(&slots, piece, bytes)     as pieces arrive, of any size
 *     ft_slots_commit(&slots)                  checks and accepts, or says what is wrong; then restart
 */
#ifndef FT_SLOTS_H
#define FT_SLOTS_H

#include "fedtiny/ft.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Flash is programmed in units of this many bytes, aligned to as many: the largest that a known part has. */
#define FT_SLOT_UNIT 32u

/* What a board does with its flash. Both return 0 if it was done. Offsets are those of ft_slots_t. */
typedef struct ft_flash {
    int (*erase)(void *context, uint32_t offset, uint32_t bytes); /* every byte becomes 0xFF, from the first on */
    int (*program)(void *context, uint32_t offset, const uint32_t *unit); /* FT_SLOT_UNIT bytes that are erased */
    void *context;
} ft_flash_t;

/* Fill in the first six; all others 0. `memory` is where offset 0 can be read; slots begin where erasing can, and are as
 * large as `slot_bytes`, a multiple of what is erased at once. A model is accepted if it needs no more than
 * `arena_bytes` and takes and gives as many bytes as the one that the firmware was made for (model.h has all three). */
typedef struct ft_slots {
    ft_flash_t flash;
    const uint32_t *memory;
    uint32_t offsets[2];
    uint32_t slot_bytes;
    uint32_t arena_bytes;
    uint32_t input_bytes, output_bytes;
    uint32_t target;    /* the slot that is written */
    uint32_t announced; /* bytes of the model on its way; 0 if there is none */
    uint32_t written;
    uint32_t unit[FT_SLOT_UNIT / 4u];
} ft_slots_t;

/* Open the newest model that is whole. FT_ERROR_MAGIC if neither slot has one. */
ft_status_t ft_slots_open(const ft_slots_t *slots, ft_model_t *model);

/* Prepare for a model of `bytes` bytes. FT_ERROR_ARGUMENT if no slot can hold it or erasing fails. */
ft_status_t ft_slots_begin(ft_slots_t *slots, uint32_t bytes);

/* Add a piece. FT_ERROR_ARGUMENT if there are more bytes than announced or programming fails; then begin again. */
ft_status_t ft_slots_write(ft_slots_t *slots, const void *piece, uint32_t bytes);

/* Accept the model, which ft_slots_open opens from now on. FT_ERROR_TRUNCATED if bytes are missing; what
 * ft_model_open says; FT_ERROR_ARENA if it needs more; FT_ERROR_FORMAT if its input or output has another size. The
 * model in use is not touched then. */
ft_status_t ft_slots_commit(ft_slots_t *slots);

#ifdef __cplusplus
}
#endif
#endif
