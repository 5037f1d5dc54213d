/* Wakes up every minute, runs the model once, and sleeps again: copy this over src/main.cpp.
 *
 * In deep sleep only what is marked RTC_DATA_ATTR keeps its value; the arena does not, so the model is opened anew each
 * time, which also finds a flash that went bad. A self-test at every wake would cost more than the answer: it runs at
 * power-on only. */
#include <Arduino.h>
#include <esp_sleep.h>

#include "fedtiny/ft.h"
#include "ft_report.h"
#include "ft_selftest.h"
#include "model.h"

static const uint64_t SLEEP_MICROSECONDS = 60ull * 1000000ull;

static uint8_t ft_arena[FT_MODEL_ARENA_BYTES] __attribute__((aligned(16)));
static ft_model_t model;
RTC_DATA_ATTR static uint32_t wakes;

/* Replace this: write one sample to `input` (see model.h for its shape and scale) and return true, or return
 * false if there is none. */
static bool read_input(int8_t *input) {
    ft_selftest_input(input);
    return true;
}

static void put(char character) { Serial.write(static_cast<uint8_t>(character)); }

/* Between operators: the other tasks of the chip get their turn, and its watchdog is fed. */
static void idle() { yield(); }

static ft_status_t start() {
    ft_status_t status = ft_model_open(&model, ft_model_words, FT_MODEL_BYTES);
    if (status == FT_OK) status = ft_bind(&model, ft_arena, sizeof ft_arena);
    return status;
}

/* At power-on: tell fedtiny-check how the device is. */
static ft_status_t report() {
    ft_selftest_t selftest;
    const ft_report_t nothing_more = {0u, 0u, 0u};
    ft_status_t status = ft_selftest_run(&model, idle, &selftest);
    if (status == FT_OK) ft_report_write(put, &nothing_more, &selftest);
    return status;
}

void setup() {
    Serial.begin(115200);
    ft_status_t status = start();
    if (status == FT_OK && wakes++ == 0u) status = report();
    if (status != FT_OK) ft_report_refusal(put, status);
    if (status == FT_OK && read_input(ft_input(&model))) {
        while (ft_step(&model) == FT_OK) idle();
        ft_report_answer(put, ft_output(&model));
    }
    Serial.flush();
    esp_sleep_enable_timer_wakeup(SLEEP_MICROSECONDS);
    esp_deep_sleep_start();
}

void loop() {} /* never reached: waking up is a reset */
