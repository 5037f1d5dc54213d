"""Measure what the planner has to know before any compiler runs, and write firmware/sizes.json.

Code: the runtime's objects, compiled for each CPU with -Os, by part. Board: what start-up, port and main add on the
emulated board, from a linked ELF. Stack: the high-water mark of runs there. Instructions: a non-negative least-squares
fit of counted runs in QEMU to the steps that `cost.features` counts.

    python benchmarks/code_sizes.py            # rewrites firmware/sizes.json
    python benchmarks/code_sizes.py --check    # exits 1 if it would change by more than 1 %
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "firmware" / "sizes.json"
sys.path.insert(0, str(ROOT / "tests" / "support"))

ARM = "arm-none-eabi-gcc"
CPUS = {
    "cortex-m0": [ARM, "-mcpu=cortex-m0plus", "-mthumb"],
    "cortex-m4": [ARM, "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"],
    "cortex-m33": [ARM, "-mcpu=cortex-m33", "-mthumb"],
    "rv32imc": ["riscv64-unknown-elf-gcc", "-march=rv32imc", "-mabi=ilp32", "-misa-spec=2.2", "--specs=picolibc.specs"],
    "xtensa-lx106": ["xtensa-lx106-elf-gcc", "-mlongcalls"],
}
FILES = {
    "ft_model": "core",
    "ft_invoke": "core",
    "ft_conv": "conv",
    "ft_conv_dense": "conv_dense",
    "ft_conv_bitmap": "conv_bitmap",
    "ft_conv_gap": "conv_gap",
    "ft_add": "add",
    "ft_mean": "mean",
}
# used by the sparse kernels only: the linker leaves it out otherwise
TAPS = "ft_conv_taps"


def object_sections(compiler: list[str], source: Path) -> dict[str, int]:
    """Sizes of the code and constant sections of one compiled file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "o"
        flags = ["-std=c99", "-Os", "-ffunction-sections", "-fdata-sections", f"-I{ROOT / 'firmware/include'}"]
        subprocess.run([*compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
        elf = ELFFile(io.BytesIO(target.read_bytes()))
        wanted = (".text", ".rodata", ".literal", ".srodata", ".data.rel.ro")
        return {s.name: s["sh_size"] for s in elf.iter_sections() if s.name.startswith(wanted) and s["sh_flags"] & 2}


def parts(compiler: list[str]) -> dict[str, int]:
    """Bytes by part."""
    found = dict.fromkeys([*dict.fromkeys(FILES.values()), "taps"], 0)
    for stem, part in FILES.items():
        for name, size in object_sections(compiler, ROOT / "firmware" / "src" / f"{stem}.c").items():
            rounded = size + -size % 4
            found["taps" if TAPS in name else part] += rounded
    return found


def compiler_name(compiler: list[str]) -> str:
    """Program and version, and the flags that matter."""
    version = subprocess.run([compiler[0], "-dumpfullversion"], capture_output=True, text=True, check=True)
    return f"{compiler[0]} {version.stdout.strip()} -Os"
