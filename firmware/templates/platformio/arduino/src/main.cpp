/* Runs the model on a board with the Arduino framework. This file is yours: a second export leaves it as it is. */
#include <Arduino.h>

#include "fedtiny/ft.h"
#include "ft_report.h"
#include "ft_selftest.h"
#include "model.h"

/* 1: a failed self-test names the first layer that differs. Costs flash: the code, and four bytes a layer and vector. */
#define NAME_THE_LAYER 0

static uint8_t ft_arena[FT_MODEL_ARENA_BYTES] __attribute__((aligned(16)));
static ft_model_t model;
static ft_status_t status;

/* Replace this: write one sample to `input` (see model.h for its shape and scale) and return true, or return
 * false if there is none. */
static bool read_input(int8_t *input) {
    ft_selftest_input(input);
    return true;
}

static void put(char character) { Serial.write(static_cast<uint8_t>(character)); }

/* Between operators: watchdogs and radios get their turn. */
static void idle() { yield(); }

/* Run the model; return the microseconds it took. */
static uint32_t run_model() {
    uint32_t started = static_cast<uint32_t>(micros());
    while (ft_step(&model) == FT_OK) idle();
    return static_cast<uint32_t>(micros()) - started;
}

static ft_status_t start(ft_selftest_t *selftest) {
    ft_status_t result = ft_model_open(&model, ft_model_words, FT_MODEL_BYTES);
    if (result == FT_OK) result = ft_bind(&model, ft_arena, sizeof ft_arena);
    if (result == FT_OK) result = ft_selftest_run(&model, idle, selftest);
    return result;
}

void setup() {
    ft_selftest_t selftest;
    ft_report_t report = {0u, 0u, 0u};
    Serial.begin(115200);
    while (!Serial && millis() < 3000) delay(10);
    status = start(&selftest);
    if (status != FT_OK) {
        ft_report_refusal(put, status);
        return;
    }
#if NAME_THE_LAYER
    if (!selftest.passed) (void)ft_report_layers(put, &model, idle, &selftest);
#endif
    ft_selftest_input(ft_input(&model));
    report.microseconds = run_model();
    ft_report_write(put, &report, &selftest);
}

void loop() {
    if (status == FT_OK && read_input(ft_input(&model))) {
        (void)run_model();
        ft_report_answer(put, ft_output(&model));
    }
    delay(1000);
}
