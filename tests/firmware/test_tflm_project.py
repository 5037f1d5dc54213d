"""Projects for TensorFlow Lite Micro: what they hold, that they compile and run with stand-ins, and who has none."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import networks
import numpy as np
import oracles
import pytest
import tflm_library
from commands import export
from fedtiny_export.board.devices import Platformio, all_devices, load_device
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph, Op
from fedtiny_export.tflite.write import write_tflite
from fedtiny_export.tflm import files as tflm
from fedtiny_export.tflm.dense import as_convolutions
from fedtiny_export.tflm.project import CHIRALE, ESPRESSIF, Contents, firmware_files, library_for
from networks import Builder
from runs import make_run
from small_project import LABELS
from small_project import port as model_port
from stand_ins import STAND_INS

ESP_BOARDS = ["esp32", "esp32c3", "esp32cam", "esp32s2", "esp32s3", "xiao_esp32c3", "xiao_esp32s3"]
BOARDS = [*ESP_BOARDS, "nano33ble"]
MODEL_FOLDER = {board: "lib/fedtiny_model" if board == "nano33ble" else "components/fedtiny_model" for board in BOARDS}
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def contents(graph: Graph | None = None, arena_bytes: int | None = 20_000) -> Contents:
    graph = as_convolutions(networks.residual(1, 0.3)) if graph is None else graph
    inputs = networks.samples(graph, 6)
    return Contents(
        tflite=write_tflite(graph),
        arena_bytes=arena_bytes,
        input=model_port(graph, graph.input),
        output=model_port(graph, graph.output),
        labels=LABELS,
        normalization="inside",
        golden_inputs=inputs.reshape(6, -1),
        golden_outputs=reference.run(graph, inputs).reshape(6, -1),
    )


def write(folder: Path, board: str, made: Contents) -> None:
    for path, content in firmware_files(load_device(board), made, decode=False).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_every_espressif_board_and_the_nano_33_ble_have_a_library_and_no_other_board():
    found = {device.id: library_for(device) for device in all_devices()}
    assert {board for board, library in found.items() if library is ESPRESSIF} == set(ESP_BOARDS)
    assert {board for board, library in found.items() if library is CHIRALE} == {"nano33ble"}
    assert found["esp8266"] is None
    assert found["qemu-m4"] is None


@pytest.mark.parametrize("board", BOARDS)
def test_a_project_has_what_its_framework_wants(board):
    device = load_device(board)
    found = firmware_files(device, contents(), decode=False)
    text = {str(path): content.decode() for path, content in found.items()}
    common = {"README.md", "platformio.ini", "src/main.cpp"}
    model = {f"{MODEL_FOLDER[board]}/model_{name}" for name in ("data.c", "data.h", "io.c", "io.h", "ops.h", "run.h")}
    if board == "nano33ble":
        assert set(text) == common | model | {"lib/fedtiny_model/library.json"}
        assert "\nlib_deps = spaziochirale/Chirale_TensorFLowLite@2.0.0\n" in text["platformio.ini"]
        assert "not verified against the registry" in text["platformio.ini"]
    else:
        cmake = {"CMakeLists.txt", "src/CMakeLists.txt", "components/fedtiny_model/CMakeLists.txt"}
        assert set(text) == common | model | cmake | {"partitions.csv", "sdkconfig.defaults", "src/idf_component.yml"}
        assert '\n  espressif/esp-tflite-micro: "==1.3.7"\n' in text["src/idf_component.yml"]
        app = device.region_for("code").size
        assert f"\nfactory, app, factory, 0x10000, {app:#x}\n" in text["partitions.csv"]
        assert "REQUIRES fedtiny_model" in text["src/CMakeLists.txt"]
    assert f"\nplatform = {device.platformio.platform}\nboard = {device.platformio.board}\n" in text["platformio.ini"]
    assert f"\nframework = {'arduino' if board == 'nano33ble' else 'espidf'}\n" in text["platformio.ini"]
    assert "Exported, not built." in text["README.md"]
    assert not [name for name, content in text.items() if "${" in content]


def test_platformio_finds_no_fault_in_any_platformio_ini(tmp_path):
    config = pytest.importorskip("platformio.project.config")
    for board in BOARDS:
        path = tmp_path / f"{board}.ini"
        path.write_bytes(firmware_files(load_device(board), contents(), decode=False)[PurePosixPath("platformio.ini")])
        assert config.ProjectConfig.lint(str(path)) == {"errors": [], "warnings": []}, board
        found = config.ProjectConfig.get_instance(str(path))
        assert found.envs() == [board]
        assert found.get(f"env:{board}", "framework") == ["arduino" if board == "nano33ble" else "espidf"]


@pytest.mark.parametrize(("app_bytes", "megabytes"), [(0x140000, 2), (0x1F0000, 2), (0x1F1000, 4), (0x330000, 4)])
def test_the_flash_holds_the_app_behind_its_first_64_kib(app_bytes, megabytes):
    text = _sdkconfig(app_bytes)
    assert re.findall(r"FLASHSIZE_(\d+)MB=y", text) == [str(megabytes)]
    assert "CONFIG_ESP_MAIN_TASK_STACK_SIZE=8192\n" in text
    assert "CONFIG_ESP_DEFAULT_CPU_FREQ_MHZ_240=y\n" in text


def test_an_app_for_which_no_flash_is_large_enough_is_refused():
    with pytest.raises(FedtinyError, match="more than any flash that ESP-IDF knows"):
        _sdkconfig(128 << 20)


def _sdkconfig(app_bytes: int) -> str:
    device = load_device("esp32")
    regions = tuple(replace(r, size=app_bytes) if "code" in r.holds else r for r in device.memory)
    found = firmware_files(replace(device, memory=regions), contents(), decode=False)
    return found[PurePosixPath("sdkconfig.defaults")].decode()


def test_a_board_s_own_partitions_give_way():
    device = load_device("esp32")
    assert device.platformio is not None
    options = ("board_build.partitions = mine.csv", "board_build.f_cpu = 160000000L")
    own = replace(device, platformio=Platformio("espressif32@6.10.0", "mine", "arduino", options))
    text = firmware_files(own, contents(), decode=False)[PurePosixPath("platformio.ini")].decode()
    assert text.count("board_build.partitions") == 1
    assert "board_build.f_cpu = 160000000L" in text


def _flat() -> Graph:
    builder = Builder((9, 9, 6), 0)
    builder.conv(12)
    builder.add(Op.MEAN, settings={"keep": 0})
    builder.dense(20)
    builder.dense(7)
    return builder.int8()


def _features() -> Graph:
    builder = Builder((40,), 3)
    builder.dense(30)
    builder.dense(5)
    return builder.int8()


def _whole_image() -> Graph:
    builder = Builder((6, 5, 3), 4)
    builder.dense(11)
    builder.dense(3)
    return builder.int8()


@pytest.mark.parametrize("make", [_flat, _features, _whole_image, lambda: networks.ic01(0.1)])
def test_dense_layers_as_convolutions_give_the_same_bytes(make):
    graph = make()
    turned = as_convolutions(graph)
    inputs = networks.samples(graph, 6)
    expected = reference.run(graph, inputs).reshape(6, -1)
    assert len(np.unique(expected)) > 5
    assert np.array_equal(reference.run(turned, inputs).reshape(6, -1), expected)
    model = write_tflite(turned)
    assert "FULLY_CONNECTED" in tflm.operators(write_tflite(graph))
    assert "FULLY_CONNECTED" not in tflm.operators(model)
    assert np.array_equal(oracles.tflite_micro(model, inputs), expected)


HARNESS = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "model_data.h"
#include "model_io.h"
#include "model_ops.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
static const int8_t answers[MODEL_VECTORS][MODEL_OUTPUT_BYTES] = {
%(answers)s
};
static int runs;
static const char* fault() { const char* text = getenv("FAULT"); return text ? text : ""; }
void stand_in_sizes(size_t* input, size_t* output) {
  *input = MODEL_INPUT_BYTES;
  *output = MODEL_OUTPUT_BYTES + (strcmp(fault(), "size") == 0);
}
bool stand_in_allocates(const MicroOpResolverAlias& resolver, uint8_t* arena, size_t bytes) {
  FILE* seen = fopen("seen.tflite", "wb");
  fwrite(model_data, 1, sizeof model_data, seen);
  fclose(seen);
  for (unsigned i = 0; i < resolver.used; i++) printf("operator %%s\\n", resolver.added[i]);
  return (uintptr_t)arena %% 16 == 0 && bytes == MODEL_ARENA_BYTES && strcmp(fault(), "arena") != 0;
}
bool stand_in_invoke(const int8_t* input, int8_t* output) {
  runs++;
  for (unsigned i = 0; i < MODEL_VECTORS; i++) {
    if (memcmp(input, model_vector_inputs[i], MODEL_INPUT_BYTES) != 0) continue;
    memcpy(output, answers[i], MODEL_OUTPUT_BYTES);
    if (i == 1 && strcmp(fault(), "answer") == 0) output[2]++;
    return true;
  }
  return false;
}
"""
ESPRESSIF_MAIN = """
#include <esp_timer.h>
#include <freertos/FreeRTOS.h>
#include <freertos/task.h>
extern "C" int64_t esp_timer_get_time(void) { static int64_t now; return now += 1234; }
extern "C" void vTaskDelay(const TickType_t ticks) { if (ticks == 100) exit(0); }
extern "C" void app_main(void);
int main() { app_main(); }
"""
ARDUINO_MAIN = """
#include <Arduino.h>
extern "C" unsigned long micros(void) { static unsigned long now; return now += 1234; }
extern "C" unsigned long millis(void) { return 0; }
extern "C" void delay(unsigned long) {}
void HardwareSerial::begin(unsigned long) {}
size_t HardwareSerial::print(const char* text) { return (size_t)fputs(text, stdout); }
HardwareSerial::operator bool() const { return true; }
HardwareSerial Serial;
int main() { setup(); loop(); }
"""


def build(folder: Path, board: str, made: Contents, namespace: str = "tflite") -> Path:
    """A project compiled and linked on this machine; the interpreter's answers are TensorFlow Lite Micro's own."""
    write(folder, board, made)
    model, arduino = folder / MODEL_FOLDER[board], board == "nano33ble"
    tflm_library.write_headers(folder / "headers", namespace, int8=not arduino)
    vectors = made.golden_inputs.reshape(-1, *made.input.shape)
    answers = oracles.tflite_micro(made.tflite, vectors)
    count = int(re.findall(r"MODEL_VECTORS (\d+)u", (model / "model_io.h").read_text())[0])
    rows = "\n".join("{" + ", ".join(map(str, row)) + "}," for row in answers[:count].tolist())
    (folder / "harness.cpp").write_text(HARNESS % {"answers": rows} + (ARDUINO_MAIN if arduino else ESPRESSIF_MAIN))
    include = [f"-I{folder / 'headers'}", f"-I{model}"]
    flags = re.findall(r"build_flags = (.*)", (folder / "platformio.ini").read_text())
    for source in sorted(model.glob("*.c")):
        subprocess.run(["gcc", *WARNINGS, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)
    objects = sorted(folder.glob("*.o"))
    sources = [folder / "src/main.cpp", folder / "harness.cpp"]
    checked = ("-std=c++14", *WARNINGS, "-fno-rtti", "-fno-exceptions", "-fsanitize=address,undefined")
    subprocess.run(["g++", *checked, *flags, *include, *sources, *objects, "-o", folder / "firmware"], check=True)
    return folder / "firmware"


def run(firmware: Path, fault: str = "") -> str:
    done = subprocess.run(
        [firmware], cwd=firmware.parent, env={"FAULT": fault}, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("board", "namespace"), [("esp32", "tflite"), ("esp32", "tflite::micro"), ("nano33ble", "tflite")]
)
def test_a_project_runs_with_stand_ins_and_says_what_is_wrong(board, namespace, tmp_path, need_tool):
    need_tool("g++", "g++")
    made = contents()
    firmware = build(tmp_path, board, made, namespace)
    said = run(firmware)
    used = [line.removeprefix("operator ") for line in said.splitlines() if line.startswith("operator ")]
    int8 = board != "nano33ble"
    assert used == [tflm_library.added(tflm.METHODS[name][0], int8=int8) for name in tflm.operators(made.tflite)]
    assert (tmp_path / "seen.tflite").read_bytes() == made.tflite
    size = made.input.elements + made.output.elements
    assert "self-test: 4 vectors as exported\n" in said
    assert f"memory: arena {size} of 20000 bytes used, model {len(made.tflite)} bytes; inference: 1234 micros" in said
    best = int(np.argmax(made.golden_outputs[0]))
    assert f"answer: output {best} ({LABELS[best]}) with {made.golden_outputs[0][best]}\n" in said
    got = int(made.golden_outputs[1][2]) + 1
    assert f"self-test: vector 1 byte 2 is {got}, not {got - 1}\n" in run(firmware, "answer")
    assert "raise EXTRA_ARENA_BYTES in src/main.cpp" in run(firmware, "arena")
    assert "its input or output has another size" in run(firmware, "size")


def test_every_method_is_one_that_the_library_has():
    for operator, (method, int8) in tflm.METHODS.items():
        assert method in tflm_library.METHODS, operator
        assert int8 == (method in tflm_library.WITH_REGISTRATION), operator
        if int8:
            assert tflm_library.WITH_REGISTRATION[method] == operator


# Every Espressif board has the same sources; for the stand-in of their Xtensas there is no C library here.
CROSS = ("esp32c3", "nano33ble")


@pytest.mark.parametrize("board", CROSS)
def test_a_32_bit_compiler_takes_every_file(board, tmp_path, need_tool):
    prefix, package, flags = STAND_INS[load_device(board).cpu]
    need_tool(f"{prefix}g++", package)
    write(tmp_path, board, contents())
    model = tmp_path / MODEL_FOLDER[board]
    tflm_library.write_headers(tmp_path / "headers")
    include = [f"-I{tmp_path / 'headers'}", f"-I{model}"]
    for source in [tmp_path / "src/main.cpp", *sorted(model.glob("*.c"))]:
        language = (
            (f"{prefix}g++", "-std=c++14", "-fno-rtti") if source.suffix == ".cpp" else (f"{prefix}gcc", "-std=c99")
        )
        command = [*language, *flags, *WARNINGS, *include, "-c", source, "-o", tmp_path / "one.o"]
        subprocess.run(command, check=True)


def test_without_a_measured_arena_the_firmware_does_not_compile(tmp_path, need_tool):
    need_tool("g++", "g++")
    write(tmp_path, "esp32", contents(arena_bytes=None))
    tflm_library.write_headers(tmp_path / "headers")
    include = [f"-I{tmp_path / 'headers'}", f"-I{tmp_path / MODEL_FOLDER['esp32']}"]
    command = ["g++", *include, "-fsyntax-only", tmp_path / "src/main.cpp"]
    assert "the arena was not measured" in subprocess.run(command, capture_output=True, text=True).stderr
    assert subprocess.run([*command, "-DMODEL_ARENA_BYTES=9000"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "digits", density=0.1, widths=(24, 32))


def test_a_second_export_renews_the_model_and_leaves_the_rest(digits, tmp_path, capsys):
    out = tmp_path / "o"
    assert export(digits, "--target", "esp32s3", "--out", out, "--runtime", "tflm") == 0
    assert "exported, not built" in capsys.readouterr().out
    notes = json.loads((out / "report.json").read_text())["notes"]
    assert sum("exported, not built" in note for note in notes) == 1
    golden = np.load(out / "golden.npz")
    found = oracles.tflite_micro((out / "model.tflite").read_bytes(), golden["inputs"])
    assert np.array_equal(found, golden["outputs"].reshape(len(found), -1))
    mine = ["src/main.cpp", "src/idf_component.yml", "platformio.ini", "CMakeLists.txt", "partitions.csv"]
    for name in [*mine, "sdkconfig.defaults", "components/fedtiny_model/model_io.c"]:
        (out / name).write_text("mine\n")
    (out / "components/other").mkdir()
    assert export(digits, "--target", "esp32s3", "--out", out, "--runtime", "tflm") == 0
    assert {(out / name).read_text() for name in [*mine, "sdkconfig.defaults"]} == {"mine\n"}
    assert (out / "components/other").is_dir()
    assert "model_vector_inputs" in (out / "components/fedtiny_model/model_io.c").read_text()


@pytest.mark.parametrize(
    ("board", "runtime", "said"),
    [
        ("bluepill", "tflm", "no maintained library of TensorFlow Lite Micro exists for ststm32 (bluepill)"),
        ("qemu-m4", "tflm", "no maintained library of TensorFlow Lite Micro exists for emulated boards (qemu-m4)"),
        ("esp32", "tflm-decode", "espressif/esp-tflite-micro 1.3.7 is not known to have the operator DECODE"),
    ],
)
def test_where_there_is_no_project_the_files_say_why(board, runtime, said, digits, tmp_path, capsys):
    assert export(digits, "--target", board, "--out", tmp_path / "o", "--runtime", runtime) in (0, 3)
    output = capsys.readouterr().out
    assert said in output
    assert "--runtime ft writes one, --project plain C files" in output
    assert said in (tmp_path / "o/README.md").read_text()
    assert "exported, not built" not in output
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        *("golden.npz", "model.tflite", "model_data.c", "model_data.h", "model_ops.h"),
        *("README.md", "report.html", "report.json", "report.txt"),
    }


def test_another_converter_s_fully_connected_layers_are_named():
    graph = networks.residual(1, 0.3)
    made = replace(contents(graph), tflite=write_tflite(graph))
    text = firmware_files(load_device("esp32"), made, decode=False)[PurePosixPath("README.md")].decode()
    assert "as its converter wrote them" in text
    text = firmware_files(load_device("esp32"), contents(), decode=False)[PurePosixPath("README.md")].decode()
    assert "written as convolutions" in text
