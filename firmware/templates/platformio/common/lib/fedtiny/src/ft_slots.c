/* Two slots of flash for models. A slot is a record of one unit, and the model behind it. */
#include "ft_slots.h"

#include <string.h>

#define RECORD_MAGIC 0x4C535446u /* FTSL */
#define RECORD_WORDS (FT_SLOT_UNIT / 4u)

/* Words of a record. */
enum { MAGIC, SEQUENCE, BYTES, CHECK = RECORD_WORDS - 1 };

static const uint32_t *record_of(const ft_slots_t *slots, uint32_t slot) {
    return slots->memory + slots->offsets[slot] / 4u;
}

/* FNV-1a over words, with a last stir: a record that is written in part does not pass. */
static uint32_t check_of(const uint32_t *record) {
    uint32_t hash = 0x811C9DC5u;
    for (uint32_t i = 0; i < CHECK; i++) hash = (hash ^ record[i]) * 0x01000193u;
    return hash ^ (hash >> 15);
}

static int recorded(const ft_slots_t *slots, uint32_t slot) {
    const uint32_t *record = record_of(slots, slot);
    return record[MAGIC] == RECORD_MAGIC && record[CHECK] == check_of(record) &&
           record[BYTES] <= slots->slot_bytes - FT_SLOT_UNIT;
}

/* Open what a slot holds, if this firmware can run it in its arena and for its input and output. */
static ft_status_t open_slot(const ft_slots_t *slots, uint32_t slot, uint32_t bytes, ft_model_t *model) {
    ft_status_t status = ft_model_open(model, record_of(slots, slot) + RECORD_WORDS, bytes);
    if (status != FT_OK) return status;
    if (ft_arena_size(model) > slots->arena_bytes) return FT_ERROR_ARENA;
    int same = ft_input_bytes(model) == slots->input_bytes && ft_output_bytes(model) == slots->output_bytes;
    return same ? FT_OK : FT_ERROR_FORMAT;
}

/* The slot with the newest model that can be opened; 2 if there is none. */
static uint32_t newest(const ft_slots_t *slots, ft_model_t *model) {
    int has[2] = {recorded(slots, 0u), recorded(slots, 1u)};
    uint32_t first = has[1] && (!has[0] || record_of(slots, 1u)[SEQUENCE] > record_of(slots, 0u)[SEQUENCE]);
    for (uint32_t turn = 0; turn < 2u; turn++) {
        uint32_t slot = first ^ turn;
        if (has[slot] && open_slot(slots, slot, record_of(slots, slot)[BYTES], model) == FT_OK) return slot;
    }
    return 2u;
}

ft_status_t ft_slots_open(const ft_slots_t *slots, ft_model_t *model) {
    return newest(slots, model) < 2u ? FT_OK : FT_ERROR_MAGIC;
}

ft_status_t ft_slots_begin(ft_slots_t *slots, uint32_t bytes) {
    ft_model_t model;
    uint32_t used = newest(slots, &model);
    slots->announced = slots->written = 0u;
    if (bytes == 0u || slots->slot_bytes <= FT_SLOT_UNIT || bytes > slots->slot_bytes - FT_SLOT_UNIT)
        return FT_ERROR_ARGUMENT;
    slots->target = used == 0u ? 1u : 0u;
    if (slots->flash.erase(slots->flash.context, slots->offsets[slots->target], slots->slot_bytes) != 0)
        return FT_ERROR_ARGUMENT;
    slots->announced = bytes;
    return FT_OK;
}

static int program(ft_slots_t *slots, uint32_t at) {
    return slots->flash.program(slots->flash.context, slots->offsets[slots->target] + at, slots->unit);
}

ft_status_t ft_slots_write(ft_slots_t *slots, const void *piece, uint32_t bytes) {
    const uint8_t *from = piece;
    if (bytes > slots->announced - slots->written) {
        slots->announced = slots->written = 0u;
        return FT_ERROR_ARGUMENT;
    }
    for (uint32_t i = 0; i < bytes; i++) {
        uint32_t place = slots->written % FT_SLOT_UNIT;
        if (place == 0u) memset(slots->unit, 0xFF, sizeof slots->unit);
        ((uint8_t *)slots->unit)[place] = from[i];
        slots->written++;
        if (place != FT_SLOT_UNIT - 1u && slots->written != slots->announced) continue;
        if (program(slots, FT_SLOT_UNIT + slots->written - 1u - place) == 0) continue;
        slots->announced = slots->written = 0u;
        return FT_ERROR_ARGUMENT;
    }
    return FT_OK;
}

ft_status_t ft_slots_commit(ft_slots_t *slots) {
    ft_model_t model;
    uint32_t other = 1u - slots->target, bytes = slots->announced;
    if (bytes == 0u || slots->written != bytes) return FT_ERROR_TRUNCATED;
    slots->announced = slots->written = 0u;
    ft_status_t status = open_slot(slots, slots->target, bytes, &model);
    if (status != FT_OK) return status;
    memset(slots->unit, 0, sizeof slots->unit);
    slots->unit[MAGIC] = RECORD_MAGIC;
    slots->unit[SEQUENCE] = recorded(slots, other) ? record_of(slots, other)[SEQUENCE] + 1u : 1u;
    slots->unit[BYTES] = bytes;
    slots->unit[CHECK] = check_of(slots->unit);
    return program(slots, 0u) == 0 && recorded(slots, slots->target) ? FT_OK : FT_ERROR_ARGUMENT;
}
