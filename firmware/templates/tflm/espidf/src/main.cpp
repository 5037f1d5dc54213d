/* Runs the model on an Espressif chip. This file is yours: a second export leaves it as it is. */
#include <esp_timer.h>
#include <freertos/FreeRTOS.h>
#include <freertos/task.h>

#include "model_run.h"

/* Room for the scratch of faster kernels, beside the arena that was measured with plain ones. */
static constexpr size_t EXTRA_ARENA_BYTES = 0;

alignas(16) static uint8_t arena[MODEL_ARENA_BYTES + EXTRA_ARENA_BYTES];

/* Replace this: write one sample to `input` (see model_io.h for its shape and scale) and return true, or return
 * false if there is none. */
static bool read_input(int8_t* input) {
    memcpy(input, model_vector_inputs[0], MODEL_INPUT_BYTES);
    return true;
}

static void put(const char* text) { fputs(text, stdout); }

static uint32_t microseconds() { return static_cast<uint32_t>(esp_timer_get_time()); }

extern "C" void app_main(void) {
    model_run::Interpreter* interpreter = model_run::start(arena, sizeof arena, put);
    if (interpreter == nullptr) return;
    (void)model_run::selftest(*interpreter, put);
    if (read_input(model_run::input(*interpreter))) model_run::report(*interpreter, sizeof arena, microseconds, put);
    for (;;) {
        if (read_input(model_run::input(*interpreter)) && model_run::run(*interpreter)) {
            model_run::answer(*interpreter, put);
        }
        vTaskDelay(pdMS_TO_TICKS(1000));
    }
}
