"""Whatever is in a .ftm file, the runtime refuses it or runs within its arena."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import pytest
from fedtiny_export.ftm import abi
from seeds import seeds, write_seeds

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("FEDTINY_FUZZ_SECONDS", "60"))
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def fuzzer(need_tool, tmp_path_factory) -> Path:
    need_tool("clang", "clang and its libclang-rt-dev")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    sources = [*sorted((ROOT / "firmware/src").rglob("*.c")), ROOT / "tests/fuzz/model.c"]
    flags = ["-g", "-O1", "-std=c99", "-Wall", "-Wextra", "-Werror", *SANITIZERS, f"-I{ROOT / 'firmware/include'}"]
    subprocess.run(["clang", *flags, *map(str, sources), "-o", str(program)], check=True)
    return program


def attack(program: Path, folder: Path, *options: str) -> tuple[int, int, str]:
    """Run the fuzzer from the seeds; the exit code, the number of runs, and what it found as text."""
    write_seeds(folder / "seeds")
    (folder / "corpus").mkdir(exist_ok=True)
    command = [str(program), "-max_len=4096", "-print_final_stats=1", f"-artifact_prefix={folder}/found-", *options]
    command += [str(folder / "corpus"), str(folder / "seeds")]
    # through a shell that forks: a child of this process would begin with its peak memory, and libFuzzer limits that
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300)
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    found = "".join(base64.b64encode(path.read_bytes()).decode() for path in folder.glob("found-*"))
    return done.returncode, int(runs[1]) if runs else 0, f"{done.stderr[-12000:]}\nthe file, in base64: {found}"


def test_a_minute_of_hostile_models(fuzzer, tmp_path):
    code, runs, text = attack(fuzzer, tmp_path, f"-max_total_time={SECONDS}")
    assert code == 0, text
    assert runs > 50 * SECONDS


def test_the_fuzzer_finds_what_it_looks_for(fuzzer, tmp_path, need_tool):
    """With one check of the runtime taken out it does not take long to leave the arena."""
    source = (ROOT / "firmware/src/ft_model.c").read_text()
    check = "tensor.offset + bytes > model->header.arena_bytes"
    assert source.count(check) == 1
    files = [path for path in (ROOT / "firmware/src").rglob("*.c") if path.name != "ft_model.c"]
    (tmp_path / "ft_model.c").write_text(source.replace(check, "0"))
    broken = tmp_path / "broken"
    include = [f"-I{ROOT / 'firmware/include'}", f"-I{ROOT / 'firmware/src'}"]
    sources = [tmp_path / "ft_model.c", *files, ROOT / "tests/fuzz/model.c"]
    subprocess.run(["clang", "-g", "-O1", *SANITIZERS, *include, *map(str, sources), "-o", str(broken)], check=True)
    code, _, text = attack(broken, tmp_path, "-max_total_time=60", "-seed=1")
    assert code != 0
    assert "ERROR: AddressSanitizer" in text


def test_every_flipped_bit_is_caught(host_runtime, tmp_path):
    for name in ("averaged-conv_rice", "vector-conv_gap"):
        data = seeds()[name]
        (tmp_path / name).write_bytes(data)
        program = host_runtime.program(main="flips.c")
        done = subprocess.run([program, tmp_path / name], capture_output=True, text=True, timeout=120, check=True)
        bits, refused, by_checksum = map(int, done.stdout.split())
        assert bits == refused == 8 * len(data)
        assert by_checksum >= 8 * (len(data) - abi.CRC_FROM + 4), "all but magic, version and sizes"


def test_the_seeds_use_every_kernel():
    used = 0
    for data in seeds().values():
        used |= abi.HEADER.unpack(data, 0)["kernels"]
    assert used == (1 << len(abi.Kernel)) - 1
