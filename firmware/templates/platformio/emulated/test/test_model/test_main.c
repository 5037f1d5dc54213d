/* `pio test` runs this in the emulator. This file is yours: add cases of your own, each a line by `report`. */
#include <stddef.h>

#include "fedtiny/ft.h"
#include "ft_port.h"
#include "ft_report.h"
#include "ft_selftest.h"
#include "model.h"

static uint8_t ft_arena[FT_MODEL_ARENA_BYTES] __attribute__((aligned(16)));
static ft_model_t model;

/* A line that test_custom_runner.py reads. */
static void report(const char *name, int passed) {
    ft_put_text(ft_port_put, passed ? "PASS " : "FAIL ");
    ft_put_text(ft_port_put, name);
    ft_port_put('\n');
}

static int golden_outputs(void) {
    ft_selftest_t selftest;
    return ft_selftest_run(&model, NULL, &selftest) == FT_OK && selftest.passed;
}

int main(void) {
    int opens = ft_model_open(&model, ft_model_words, FT_MODEL_BYTES) == FT_OK;
    int fits = opens && ft_bind(&model, ft_arena, sizeof ft_arena) == FT_OK;
    report("model_opens", opens);
    report("arena_fits", fits);
    report("golden_outputs", fits && golden_outputs());
    ft_port_text("DONE\n");
    return 0; /* PlatformIO takes other numbers for a crash; what fails is said by its line */
}
