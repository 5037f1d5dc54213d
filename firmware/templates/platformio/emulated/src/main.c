/* Runs the model on an emulated board. This file is yours: a second export leaves it as it is. */
#include <stddef.h>

#include "fedtiny/ft.h"
#include "ft_port.h"
#include "ft_report.h"
#include "ft_selftest.h"
#include "model.h"

/* 1: a failed self-test names the first layer that differs. Costs flash: the code, and four bytes a layer and vector. */
#define NAME_THE_LAYER 0

enum { REFUSED = 1, SELFTEST_FAILED = 2 };

static uint8_t ft_arena[FT_MODEL_ARENA_BYTES] __attribute__((aligned(16)));
static ft_model_t model;

/* Replace this: write one sample to `input` (see model.h for its shape and scale) and return 1, or return 0 if
 * there is none. */
static int read_input(int8_t *input) {
    ft_selftest_input(input);
    return 1;
}

static ft_status_t start(ft_selftest_t *selftest) {
    ft_status_t status = ft_model_open(&model, ft_model_words, FT_MODEL_BYTES);
    if (status == FT_OK) status = ft_bind(&model, ft_arena, sizeof ft_arena);
    if (status == FT_OK) status = ft_selftest_run(&model, NULL, selftest);
    return status;
}

int main(void) {
    ft_selftest_t selftest;
    ft_report_t report = {0u, 0u, 0u};
    ft_status_t status = start(&selftest);
    if (status != FT_OK) {
        ft_report_refusal(ft_port_put, status);
        return REFUSED;
    }
#if NAME_THE_LAYER
    if (!selftest.passed) (void)ft_report_layers(ft_port_put, &model, NULL, &selftest);
#endif
    if (read_input(ft_input(&model))) {
        (void)ft_invoke(&model);
        ft_report_answer(ft_port_put, ft_output(&model));
    }
    report.stack_used = ft_stack_used();
    report.stack_bytes = ft_stack_bytes();
    ft_report_write(ft_port_put, &report, &selftest);
    int failed = ft_port_serve(&model);
    return failed != 0 ? failed : selftest.passed ? 0 : SELFTEST_FAILED;
}
