/* Runs the model. This file is yours: a second export leaves it as it is. */
#include "fedtiny_app.h"

#include <stdio.h>

#include "fedtiny/ft.h"
#include "ft_report.h"
#include "ft_selftest.h"
#include "model.h"

/* 1: a failed self-test names the first layer that differs. Costs flash: the code, and four bytes a layer and vector. */
#define NAME_THE_LAYER 0

static uint8_t ft_arena[FT_MODEL_ARENA_BYTES] __attribute__((aligned(16)));
static ft_model_t model;
static int started;

/* Replace this: write one sample to `input` (see model.h for its shape and scale) and return 1, or return 0 if
 * there is none. */
static int read_input(int8_t *input) {
    ft_selftest_input(input);
    return 1;
}

/* Replace this where printf goes nowhere: write one character to the serial port. */
static void put(char character) { (void)putchar(character); }

/* Called between operators: feed a watchdog, serve a radio. */
static void idle(void) {}

int fedtiny_start(void) {
    ft_selftest_t selftest;
    const ft_report_t report = {0u, 0u, 0u};
    ft_status_t status = ft_model_open(&model, ft_model_words, FT_MODEL_BYTES);
    if (status == FT_OK) status = ft_bind(&model, ft_arena, sizeof ft_arena);
    if (status == FT_OK) status = ft_selftest_run(&model, idle, &selftest);
    if (status != FT_OK) {
        ft_report_refusal(put, status);
        return status;
    }
#if NAME_THE_LAYER
    if (!selftest.passed) (void)ft_report_layers(put, &model, idle, &selftest);
#endif
    ft_report_write(put, &report, &selftest);
    started = 1;
    return 0;
}

int fedtiny_run(void) {
    if (!started || !read_input(ft_input(&model))) return -1;
    while (ft_step(&model) == FT_OK) idle();
    const int8_t *output = ft_output(&model);
    int best = 0;
    for (int i = 1; i < (int)FT_MODEL_OUTPUT_BYTES; i++) {
        if (output[i] > output[best]) best = i;
    }
    ft_report_answer(put, output);
    return best;
}
