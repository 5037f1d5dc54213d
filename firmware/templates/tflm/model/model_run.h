/* The model in TensorFlow Lite Micro: start, self-test, run, and what the device says about itself. C++. */
#ifndef MODEL_RUN_H
#define MODEL_RUN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "model_data.h"
#include "model_io.h"
#include "model_ops.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

#ifndef MODEL_ARENA_BYTES
#error "the arena was not measured: install tflite-micro and export again, or build with -DMODEL_ARENA_BYTES=..."
#endif

namespace model_run {
using namespace ::tflite;
using namespace ::tflite::micro;

using Interpreter = MicroInterpreter;

/* Writes text to wherever it goes. */
using Put = void (*)(const char* text);

/* Microseconds from some start on. */
using Clock = uint32_t (*)();

/* The interpreter, ready to run; null if TensorFlow Lite Micro or its arena does not do, with a line that says so. To be
 * called once: `arena` is aligned to 16 bytes and stays. */
inline Interpreter* start(uint8_t* arena, size_t arena_bytes, Put put) {
    static ::model_ops::Resolver resolver;
    if (AddModelOps(resolver) != kTfLiteOk) {
        put("the model was refused: an operator is missing\n");
        return nullptr;
    }
    static Interpreter interpreter(GetModel(model_data), resolver, arena, arena_bytes);
    if (interpreter.AllocateTensors() != kTfLiteOk) {
        put("the model was refused: raise EXTRA_ARENA_BYTES in src/main.cpp, or see what is said above\n");
        return nullptr;
    }
    if (interpreter.input(0)->bytes != MODEL_INPUT_BYTES || interpreter.output(0)->bytes != MODEL_OUTPUT_BYTES) {
        put("the model was refused: its input or output has another size\n");
        return nullptr;
    }
    return &interpreter;
}

inline int8_t* input(Interpreter& interpreter) { return interpreter.input(0)->data.int8; }

inline const int8_t* output(Interpreter& interpreter) { return interpreter.output(0)->data.int8; }

inline bool run(Interpreter& interpreter) { return interpreter.Invoke() == kTfLiteOk; }

/* Run every vector; whether all outputs are as they were exported. One line says so, or where they first differ. */
inline bool selftest(Interpreter& interpreter, Put put) {
    char line[96];
    for (uint32_t vector = 0; vector < MODEL_VECTORS; vector++) {
        memcpy(input(interpreter), model_vector_inputs[vector], MODEL_INPUT_BYTES);
        if (!run(interpreter)) {
            put("self-test: the model does not run\n");
            return false;
        }
        for (uint32_t i = 0; i < MODEL_OUTPUT_BYTES; i++) {
            int got = output(interpreter)[i], expected = model_vector_outputs[vector][i];
            if (got == expected) continue;
            snprintf(line, sizeof line, "self-test: vector %lu byte %lu is %d, not %d\n",
                     static_cast<unsigned long>(vector), static_cast<unsigned long>(i), got, expected);
            put(line);
            return false;
        }
    }
    snprintf(line, sizeof line, "self-test: %lu vectors as exported\n", static_cast<unsigned long>(MODEL_VECTORS));
    put(line);
    return true;
}

/* Write what the model takes: bytes of arena and model, and microseconds of one inference on what the input holds. */
inline void report(Interpreter& interpreter, size_t arena_bytes, Clock clock, Put put) {
    char line[128];
    uint32_t started = clock();
    bool ran = run(interpreter);
    uint32_t took = clock() - started;
    snprintf(line, sizeof line, "memory: arena %lu of %lu bytes used, model %lu bytes; inference: %lu microseconds%s\n",
             static_cast<unsigned long>(interpreter.arena_used_bytes()), static_cast<unsigned long>(arena_bytes),
             static_cast<unsigned long>(MODEL_DATA_BYTES), static_cast<unsigned long>(took), ran ? "" : ", failed");
    put(line);
}

/* Write the largest of the outputs with its label. */
inline void answer(Interpreter& interpreter, Put put) {
    const int8_t* values = output(interpreter);
    char line[32];
    uint32_t best = 0;
    for (uint32_t i = 1; i < MODEL_OUTPUT_BYTES; i++) {
        if (values[i] > values[best]) best = i;
    }
    snprintf(line, sizeof line, "answer: output %lu (", static_cast<unsigned long>(best));
    put(line);
    put(model_label(best));
    snprintf(line, sizeof line, ") with %d\n", static_cast<int>(values[best]));
    put(line);
}
}  // namespace model_run

#endif
