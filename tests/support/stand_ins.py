"""Compilers that stand in for the boards' own, and the little of the SDKs' headers that generated projects use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from fedtiny_export.board.devices import Device

ARDUINO_H = """
#pragma once
#include <stddef.h>
#include <stdint.h>
extern "C" { unsigned long micros(void); unsigned long millis(void); void delay(unsigned long); void yield(void); }
struct HardwareSerial {
    void begin(unsigned long); size_t write(uint8_t); void flush(); explicit operator bool() const;
};
#define RTC_DATA_ATTR
extern HardwareSerial Serial;
"""

ESP_SLEEP_H = """
#pragma once
#include <stdint.h>
extern "C" { int esp_sleep_enable_timer_wakeup(uint64_t); void esp_deep_sleep_start(void) __attribute__((noreturn)); }
"""

STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
STRICT_CXX = ["-std=gnu++11", "-Wall", "-Wextra", "-Werror", "-fno-exceptions"]

# Prefix, Debian package, flags: what compiles in place of each board's own toolchain.
XTENSA = ("xtensa-lx106-elf-", "gcc-xtensa-lx106", ["-mlongcalls"])
RISCV_FLAGS = ["--specs=picolibc.specs", "-march=rv32imc", "-mabi=ilp32", "-misa-spec=2.2"]
RISCV = ("riscv64-unknown-elf-", "gcc-riscv64-unknown-elf and picolibc-riscv64-unknown-elf", RISCV_FLAGS)


def _arm(cpu: str) -> tuple[str, str, list[str]]:
    return ("arm-none-eabi-", "gcc-arm-none-eabi", [f"-mcpu={cpu}", "-mthumb"])


STAND_INS = {
    "xtensa-lx6": XTENSA,
    "xtensa-lx7": XTENSA,
    "xtensa-lx106": XTENSA,
    "rv32imc": RISCV,
    "cortex-m0": _arm("cortex-m0"),
    "cortex-m0plus": _arm("cortex-m0plus"),
    "cortex-m3": _arm("cortex-m3"),
    "cortex-m4f": _arm("cortex-m4"),
    "cortex-m7": _arm("cortex-m7"),
    "cortex-m33": _arm("cortex-m33"),
    "cortex-m55": _arm("cortex-m55"),
}


def compile_project(folder: Path, device: Device) -> tuple[set[str], list[str]]:
    """Compile every source of an export for its board, strictly; return their names and the complaints."""
    prefix, _, cpu = STAND_INS[device.cpu]
    (folder / "Arduino.h").write_text(ARDUINO_H)
    (folder / "esp_sleep.h").write_text(ESP_SLEEP_H)
    library = folder / "lib" / "fedtiny"
    places = (library / "include", folder / "platforms" / "fedtiny_emulator" / "support", folder)
    own = json.loads((library / "library.json").read_text())["build"].get("flags", [])
    flags = [*cpu, "-Os", *own, *(f"-I{place}" for place in places)]
    sources = [p for p in folder.rglob("*") if p.suffix in (".c", ".cpp")]
    complaints = []
    for source in sources:
        compiler, strict = (prefix + "gcc", STRICT) if source.suffix == ".c" else (prefix + "g++", STRICT_CXX)
        command = [compiler, *flags, *strict, "-c", str(source), "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            complaints.append(f"{source.name}: {done.stderr[:2000]}")
    return {source.name for source in sources}, complaints
