"""Stand-ins for the headers of TensorFlow Lite Micro, ESP-IDF, Arduino and the Arduino library of the former.

Classes and methods are declared as the real ones are, written down from their sources: METHODS are the
resolver's methods in TensorFlow Lite Micro of 2023 (open-vela/apps_mlearning_tflite-micro, a copy) and of AddDecode,
which came in 2025. The interpreter answers by a function that the test brings.
"""

from __future__ import annotations

from pathlib import Path

# Methods that take a registration, by the operator of their registrations.
WITH_REGISTRATION = {
    "AddAdd": "ADD",
    "AddAveragePool2D": "AVERAGE_POOL_2D",
    "AddConv2D": "CONV_2D",
    "AddDepthwiseConv2D": "DEPTHWISE_CONV_2D",
    "AddFullyConnected": "FULLY_CONNECTED",
    "AddMaxPool2D": "MAX_POOL_2D",
    "AddMul": "MUL",
    "AddSoftmax": "SOFTMAX",
}
# Of those that take none, or only one for all types.
_PLAIN = (
    "AddAbs AddAddN AddArgMax AddArgMin AddBatchMatMul AddBroadcastTo AddCast AddConcatenation AddDecode AddDequantize "
    "AddDiv AddElu AddExp AddExpandDims AddFill AddGather AddHardSwish AddL2Normalization AddLeakyRelu AddLogistic "
    "AddLogSoftmax AddMaximum AddMean AddMinimum AddMirrorPad AddNeg AddPack AddPad AddPadV2 AddPrelu AddQuantize "
    "AddReduceMax AddRelu AddRelu6 AddReshape AddResizeBilinear AddResizeNearestNeighbor AddRsqrt AddSlice AddSplit "
    "AddSqrt AddSqueeze AddStridedSlice AddSub AddSum AddSvdf AddTanh AddTranspose AddTransposeConv AddUnpack"
)
PLAIN = tuple(_PLAIN.split())
METHODS = frozenset((*WITH_REGISTRATION, *PLAIN))

_COMMON = """
#pragma once
#include <stddef.h>
#include <stdint.h>
#define TF_LITE_ENSURE_STATUS(a) do { if ((a) != kTfLiteOk) return kTfLiteError; } while (0)
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
union TfLitePtrUnion { int32_t* i32; float* f; int8_t* int8; void* data; };
struct TfLiteTensor { TfLitePtrUnion data; size_t bytes; };
struct TFLMRegistration { const char* name; };
%(open)s
class MicroOpResolver {
 public:
  const char* added[64];
  unsigned used = 0;
};
%(close)s
"""
_RESOLVER = """
#pragma once
#include "tensorflow/lite/c/common.h"
%(open)s
%(registrations)s
template <unsigned int N> class MicroMutableOpResolver : public MicroOpResolver {
 public:
%(methods)s
 private:
  TfLiteStatus take(const char* name) {
    if (used >= N) return kTfLiteError;
    added[used++] = name;
    return kTfLiteOk;
  }
};
%(close)s
"""
_SCHEMA = """
#pragma once
%(open)s
struct Model { const void* bytes; };
inline const Model* GetModel(const void* buffer) {
  static Model model;
  model.bytes = buffer;
  return &model;
}
%(close)s
"""
_INTERPRETER = """
#pragma once
#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/schema/schema_generated.h"
/* The test's: the sizes, whether the arena does, and the answer. */
void stand_in_sizes(size_t* input, size_t* output);
bool stand_in_allocates(const MicroOpResolverAlias& resolver, uint8_t* arena, size_t arena_bytes);
bool stand_in_invoke(const int8_t* input, int8_t* output);
%(open)s
class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t arena_bytes)
      : model_(model), resolver_(resolver), arena_(arena), arena_bytes_(arena_bytes) {}
  TfLiteStatus AllocateTensors() {
    stand_in_sizes(&input_.bytes, &output_.bytes);
    if (model_->bytes == nullptr || !stand_in_allocates(resolver_, arena_, arena_bytes_)) return kTfLiteError;
    input_.data.int8 = reinterpret_cast<int8_t*>(arena_);
    output_.data.int8 = input_.data.int8 + input_.bytes;
    return kTfLiteOk;
  }
  TfLiteStatus Invoke() { return stand_in_invoke(input_.data.int8, output_.data.int8) ? kTfLiteOk : kTfLiteError; }
  TfLiteTensor* input(size_t) { return &input_; }
  TfLiteTensor* output(size_t) { return &output_; }
  size_t arena_used_bytes() const { return input_.bytes + output_.bytes; }
 private:
  const Model* model_;
  const MicroOpResolver& resolver_;
  uint8_t* arena_;
  size_t arena_bytes_;
  TfLiteTensor input_, output_;
};
%(close)s
"""
_OTHERS = {
    "esp_timer.h": '#pragma once\n#include <stdint.h>\nextern "C" int64_t esp_timer_get_time(void);\n',
    "freertos/FreeRTOS.h": "#pragma once\n#include <stdint.h>\n"
    "typedef uint32_t TickType_t;\n#define pdMS_TO_TICKS(x) ((TickType_t)((x) / 10))\n",
    "freertos/task.h": '#pragma once\nextern "C" void vTaskDelay(const TickType_t);\n',
    "Chirale_TensorFlowLite.h": "#pragma once\n",
    "Arduino.h": "#pragma once\n#include <stddef.h>\n#include <stdint.h>\n"
    'extern "C" { unsigned long micros(void); unsigned long millis(void); void delay(unsigned long); }\n'
    "struct HardwareSerial { void begin(unsigned long); size_t print(const char*); explicit operator bool() const; };\n"
    "extern HardwareSerial Serial;\nvoid setup();\nvoid loop();\n",
}


def write_headers(folder: Path, namespace: str = "tflite", *, int8: bool = True) -> None:
    """Write every header; without `int8` the resolver is one from before registrations for int8 alone."""
    parts = namespace.split("::")
    names = {
        "open": " ".join(f"namespace {part} {{" for part in parts),
        "close": "}" * len(parts),
        "registrations": "\n".join(map(_registration, WITH_REGISTRATION.values())) if int8 else "",
        "methods": "\n".join([*(_with(m, o, int8) for m, o in WITH_REGISTRATION.items()), *map(_without, PLAIN)]),
    }
    alias = f"#define MicroOpResolverAlias ::{namespace}::MicroOpResolver\n"
    files = {
        "tensorflow/lite/c/common.h": _COMMON % names,
        "tensorflow/lite/micro/micro_mutable_op_resolver.h": _RESOLVER % names,
        "tensorflow/lite/schema/schema_generated.h": _SCHEMA % names,
        "tensorflow/lite/micro/micro_interpreter.h": alias + _INTERPRETER % names,
        **_OTHERS,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def added(method: str, *, int8: bool = True) -> str:
    """What the resolver remembers of a method that was called with a registration for int8, or without."""
    operator = WITH_REGISTRATION.get(method)
    return method if operator is None else operator if int8 else f"{operator} of any type"


def _registration(operator: str) -> str:
    return f'inline TFLMRegistration Register_{operator}_INT8() {{ return {{"{operator}"}}; }}'


def _with(method: str, operator: str, int8: bool) -> str:
    default = f'TFLMRegistration{{"{operator} of any type"}}'
    argument = f"const TFLMRegistration& registration = {default}" if int8 else ""
    taken = "registration.name" if int8 else f'"{operator} of any type"'
    return f"  TfLiteStatus {method}({argument}) {{ return take({taken}); }}"


def _without(method: str) -> str:
    return f'  TfLiteStatus {method}() {{ return take("{method}"); }}'
