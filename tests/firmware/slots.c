/* An emulated flash that loses power: slots.c OLD.ftm NEW.ftm ARENA INPUT OUTPUT checks that a working model is left at
 * every byte. Erasing sets bytes to 0xFF one after another, programming clears bits of bytes, those of a unit in any order,
 * and the byte at which power goes is left as chance will have it. Prints how many places were tried. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ft_slots.h"

enum { SLOT_BYTES = 8192, FLASH_BYTES = 2 * SLOT_BYTES, MODEL_BYTES = 8192, EVER = 1 << 30 };

static union {
    uint8_t bytes[FLASH_BYTES];
    uint32_t words[FLASH_BYTES / 4];
} flash, whole;
static uint8_t programmed[FLASH_BYTES / FT_SLOT_UNIT];
static int power; /* bytes until it is gone */
static uint32_t chance = 1;
static jmp_buf gone;
static union {
    uint32_t words[MODEL_BYTES / 4];
    uint8_t bytes[MODEL_BYTES];
} models[2];
static uint32_t sizes[2];
static ft_slots_t fresh;

static void fail(const char *what) {
    printf("FAIL %s\n", what);
    exit(1);
}

static uint8_t some_bits(void) {
    chance = chance * 1664525u + 1013904223u;
    return (uint8_t)(chance >> 24);
}

static int flash_erase(void *context, uint32_t offset, uint32_t bytes) {
    (void)context;
    for (uint32_t i = offset; i < offset + bytes; i++) {
        if (i % FT_SLOT_UNIT == 0u) programmed[i / FT_SLOT_UNIT] = 0u;
        if (power-- == 0) {
            flash.bytes[i] = (uint8_t)(flash.bytes[i] | some_bits());
            longjmp(gone, 1);
        }
        flash.bytes[i] = 0xFFu;
    }
    return 0;
}

static int flash_program(void *context, uint32_t offset, const uint32_t *unit) {
    (void)context;
    if (offset % FT_SLOT_UNIT != 0u || offset >= FLASH_BYTES) fail("a unit is not where one can be");
    if (programmed[offset / FT_SLOT_UNIT]++) fail("a unit is programmed twice");
    uint32_t first = some_bits(), step = some_bits() | 1u; /* a unit's bytes are programmed in any order */
    for (uint32_t count = 0; count < FT_SLOT_UNIT; count++) {
        uint32_t i = (first + count * step) % FT_SLOT_UNIT;
        uint8_t wanted = ((const uint8_t *)unit)[i];
        if (power-- == 0) {
            flash.bytes[offset + i] = (uint8_t)(flash.bytes[offset + i] & (wanted | some_bits()));
            longjmp(gone, 1);
        }
        flash.bytes[offset + i] = (uint8_t)(flash.bytes[offset + i] & wanted);
    }
    return 0;
}

static ft_status_t update(int which, uint32_t piece) {
    ft_slots_t slots = fresh;
    ft_status_t status = ft_slots_begin(&slots, sizes[which]);
    for (uint32_t at = 0; status == FT_OK && at < sizes[which]; at += piece) {
        uint32_t rest = sizes[which] - at;
        status = ft_slots_write(&slots, models[which].bytes + at, rest < piece ? rest : piece);
    }
    return status == FT_OK ? ft_slots_commit(&slots) : status;
}

/* Which of the two models a restarted device opens; -1 if none. */
static int opened(void) {
    ft_model_t model;
    if (ft_slots_open(&fresh, &model) != FT_OK) return -1;
    if (model.words[1 - (int)FT_SLOT_UNIT / 4] > 100u) fail("a record that is written in part counts");
    for (int which = 0; which < 2; which++) {
        if (model.header.total_bytes == sizes[which] && !memcmp(model.words, models[which].bytes, sizes[which])) return which;
    }
    fail("something is opened that is neither model");
    return -1;
}

/* Power goes after `bytes` bytes of an update from one model to the other; 1 if the update was through before. */
static int cut(int from, int to, int bytes) {
    flash = whole;
    for (uint32_t i = 0; i < sizeof programmed; i++) programmed[i] = 1u;
    power = bytes;
    int lost = setjmp(gone);
    if (!lost && update(to, 48u) != FT_OK) fail("an update that nothing disturbs");
    power = EVER;
    int now = opened();
    if (now != to && (now != from || !lost)) fail("no working model is left");
    if (!lost) return 1;
    if (update(to, 1000u) != FT_OK || opened() != to) fail("the next update after a loss of power");
    return 0;
}

static void read_model(const char *path, int which) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path);
    sizes[which] = (uint32_t)fread(models[which].bytes, 1, MODEL_BYTES, file);
    (void)fclose(file);
}

static ft_status_t with(const uint8_t *bytes, uint32_t size, uint32_t announced, ft_slots_t *slots) {
    ft_status_t status = ft_slots_begin(slots, announced);
    if (status == FT_OK) status = ft_slots_write(slots, bytes, size);
    return status == FT_OK ? ft_slots_commit(slots) : status;
}

/* The new model is there as a whole, and not yet accepted. */
static ft_status_t arrived(ft_slots_t *slots) {
    *slots = fresh;
    ft_status_t status = ft_slots_begin(slots, sizes[1]);
    return status == FT_OK ? ft_slots_write(slots, models[1].bytes, sizes[1]) : status;
}

/* What must not be accepted, and leaves the old model in use. */
static void refusals(void) {
    ft_slots_t slots = fresh;
    uint8_t damaged[MODEL_BYTES];
    memcpy(damaged, models[1].bytes, sizes[1]);
    damaged[sizes[1] / 2u] ^= 1u;
    if (with(models[1].bytes, sizes[1] - 4u, sizes[1], &slots) != FT_ERROR_TRUNCATED) fail("bytes are missing");
    if (with(models[1].bytes, sizes[1] - 4u, sizes[1] - 4u, &slots) != FT_ERROR_TRUNCATED) fail("a file cut off");
    if (with(models[1].bytes, sizes[1], sizes[1] - 4u, &slots) != FT_ERROR_ARGUMENT) fail("more than announced");
    if (with(damaged, sizes[1], sizes[1], &slots) != FT_ERROR_CHECKSUM) fail("a damaged file");
    if (ft_slots_commit(&slots) != FT_ERROR_TRUNCATED) fail("a commit of nothing");
    if (ft_slots_begin(&slots, 0u) != FT_ERROR_ARGUMENT) fail("an empty model");
    if (ft_slots_begin(&slots, SLOT_BYTES - FT_SLOT_UNIT + 1u) != FT_ERROR_ARGUMENT) fail("a model over the slot");
    if (arrived(&slots) != FT_OK) fail("a model arrives");
    slots.arena_bytes--;
    if (ft_slots_commit(&slots) != FT_ERROR_ARENA) fail("a larger arena");
    if (arrived(&slots) != FT_OK) fail("a model arrives again");
    slots.output_bytes++;
    if (ft_slots_commit(&slots) != FT_ERROR_FORMAT) fail("another output");
    if (arrived(&slots) != FT_OK) fail("a model arrives once more");
    slots.input_bytes++;
    if (ft_slots_commit(&slots) != FT_ERROR_FORMAT) fail("another input");
    if (opened() != 0) fail("a refused model was in the way");
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    read_model(arguments[1], 0);
    read_model(arguments[2], 1);
    fresh.flash = (ft_flash_t){flash_erase, flash_program, NULL};
    fresh.memory = flash.words;
    fresh.offsets[1] = SLOT_BYTES;
    fresh.slot_bytes = SLOT_BYTES;
    fresh.arena_bytes = (uint32_t)atoi(arguments[3]);
    fresh.input_bytes = (uint32_t)atoi(arguments[4]);
    fresh.output_bytes = (uint32_t)atoi(arguments[5]);
    power = EVER;
    for (uint32_t i = 0; i < FLASH_BYTES; i++) flash.bytes[i] = some_bits();
    if (opened() != -1) fail("garbage is opened");
    if (update(0, 1u) != FT_OK || opened() != 0) fail("the first model");
    refusals();
    int tried = 0;
    for (int round = 0; round < 4; round++) { /* both slots, both ways, sequence numbers going up */
        int from = round % 2, to = 1 - from, bytes = 0;
        whole = flash;
        while (!cut(from, to, bytes)) bytes++;
        tried += bytes;
    }
    int now = opened(); /* a slot that goes bad later: the one before is used */
    for (uint32_t slot = 0; slot < 2u; slot++) {
        whole = flash;
        flash.bytes[slot * SLOT_BYTES + FT_SLOT_UNIT + 100u] ^= 1u;
        int then = opened();
        if (then < 0) fail("one bad slot stops the device");
        if (update(now, 64u) != FT_OK || opened() != now) fail("an update beside a bad slot");
        flash = whole;
    }
    printf("%d\n", tried);
    return 0;
}
