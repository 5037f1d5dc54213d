"""The emulated board: its memory ends where the part's does, counting is exact, and failing is told plainly."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess

import pytest
from fedtiny_export.board import devices, emulator
from fedtiny_export.board.devices import Device, Memory, load_device
from fedtiny_export.board.elf import FLASH_PARTS, RAM_PARTS, read_image
from fedtiny_export.board.emulator import build, require_tools, run
from fedtiny_export.board.project import label_bytes
from fedtiny_export.board.selftest import selftest_bytes
from fedtiny_export.errors import FedtinyError, OverBudgetError, ToolMissingError
from small_project import artifacts, write_export
from stand_ins import STRICT

START = "int main(void) {"
DEVICE = load_device("qemu-m4")


@pytest.fixture(autouse=True)
def tools(need_tool):
    need_tool("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need_tool("qemu-system-arm", "qemu-system-arm")


@pytest.fixture
def project(tmp_path):
    write_export(tmp_path, "qemu-m4")
    return tmp_path


def change_main(folder, at_start: str, before: str = "") -> None:
    path = folder / "src" / "main.c"
    path.write_text(path.read_text().replace(START, f"{before}\n{START}\n{at_start}\n"))


def run_project(folder, device: Device = DEVICE, made=None) -> emulator.Run:
    made = artifacts() if made is None else made
    firmware = build(folder, device)
    return run(firmware, read_image(firmware.elf, device), device, made.golden_inputs, made.output.elements)


def test_outputs_and_counts_of_every_sample(project):
    made = artifacts()
    result = run_project(project)
    assert result.exit_code == 0, result.text
    assert result.outputs == made.golden_outputs.tobytes()
    assert len(result.counts) == made.golden_inputs.shape[0]
    assert min(result.counts) > 10_000
    assert result.counts == run_project(project).counts


def test_counting_is_exact(project):
    """A thousand more instructions inside ft_invoke are a thousand more counted; outside they are none."""
    before = run_project(project).counts
    nops = '__asm__ volatile(".rept 1000\\n nop\\n .endr");'
    path = project / "lib" / "fedtiny" / "src" / "ft_invoke.c"
    text = path.read_text()
    start = re.search(r"ft_status_t ft_invoke\(ft_model_t \*model\) \{", text)
    path.write_text(text[: start.end()] + nops + text[start.end() :])
    after = run_project(project).counts
    assert [b - a for a, b in zip(before, after, strict=True)] == [1000] * len(before)
    path.write_text(text)
    change_main(project, nops)
    assert run_project(project).counts == before


COSTS = {
    "nop": 1,
    "ldr r3, [sp]": 2,
    "ldrb r3, [sp]": 2,
    "str r3, [sp, #-64]": 1,
    "push {r0, r1, r2}\n pop {r0, r1, r2}": 4 + 4,
    "ldrd r2, r3, [sp]": 3,
    "udiv r3, r3, r3": 6,
    "b 1f\n nop\n 1:": 1 + 2,
    "cmp r3, r3\n bne 1f\n 1:": 1 + 1,
    "cmp r3, r3\n beq 1f\n nop\n 1:": 1 + 1 + 2,
}


def test_every_instruction_costs_what_the_table_says(project):
    """The model of the Cortex-M4: each kind of instruction more inside ft_invoke, each as often as no other."""
    path = project / "lib" / "fedtiny" / "src" / "ft_invoke.c"
    text = path.read_text()
    start = text.index("ft_status_t ft_invoke(")
    entry = text.index("{", start) + 1
    often = {line: 100 + 7**index for index, line in enumerate(list(COSTS)[:4])}
    often |= {line: 101 + index for index, line in enumerate(list(COSTS)[4:])}
    lines = "".join(f".rept {count}\n {line}\n .endr\n" for line, count in often.items())
    found = {}
    for code in ("", lines):  # in a function of its own, so that all others stay as they are
        quoted = code.replace("\n", "\\n")
        body = f'__asm__ volatile("{quoted}" ::: "r2", "r3", "cc", "memory");'
        more = f"__attribute__((noinline)) static void more(void) {{ {body} }}\n"
        path.write_text(f"{text[:start]}{more}{text[start:entry]} more();{text[entry:]}")
        found[code] = run_project(project).cycles[0]
    assert found[lines] - found[""] == sum(often[line] * cost for line, cost in COSTS.items())


BAD_STORES = {
    "beyond RAM": 0x2003_0000,
    "far beyond RAM": 0x2040_0000,
    "below RAM": 0x1FFF_FFFC,
    "flash": 0x0000_0100,
    "beyond flash": 0x0010_0000,
}


@pytest.mark.parametrize("place", BAD_STORES)
def test_memory_ends_where_the_part_s_does(project, place):
    change_main(project, f"*(volatile uint32_t *){BAD_STORES[place]:#x}u = 1u;")
    result = run_project(project)
    assert result.exit_code == 104, result.text  # exception 4: memory management
    assert f"address={BAD_STORES[place]:08x}" in result.text


def test_the_last_word_of_ram_can_be_used(project):
    change_main(project, "*(volatile uint32_t *)0x2002fffcu = 1u;")
    assert run_project(project).exit_code == 0


def test_data_cannot_be_executed(project):
    change_main(project, "((void (*)(void))0x20020001u)();")
    assert run_project(project).exit_code == 104


def test_a_stack_overflow_is_caught_and_reported(project):
    deep = (
        "static int deep(int n) { volatile char pad[512]; pad[0] = (char)n; "
        "return n == 0 ? pad[0] : deep(n - 1) + pad[0]; }"
    )
    change_main(project, "if (deep(100) == 1234567) return 9;", before=deep)
    result = run_project(project)
    assert result.exit_code in (103, 104), result.text
    assert "FAULT exception=" in result.text


def test_stack_paint_sees_the_deepest_call(project):
    first = re.search(r'"stack_used":(\d+)', run_project(project).text)
    deep = "static int deep(void) { volatile char pad[1500]; pad[0] = 1; return pad[0]; }"
    change_main(project, "if (deep() != 1) return 9;", before=deep)
    second = re.search(r'"stack_used":(\d+)', run_project(project).text)
    assert 1500 < int(second[1]) <= 1600 > int(first[1])


def test_a_firmware_that_never_ends_is_ended(project, monkeypatch):
    monkeypatch.setattr(emulator, "RUN_SECONDS", 1)
    monkeypatch.setattr(emulator, "RUN_SECONDS_PER_SAMPLE", 0)
    change_main(project, "for (volatile int again = 1; again;) { }")
    with pytest.raises(FedtinyError, match="did not end within 1 s"):
        run_project(project)


def test_a_firmware_too_large_for_the_part_does_not_link(project):
    change_main(project, "if (large[5] != 0) return 9;", before="volatile char large[192 * 1024];")
    with pytest.raises(OverBudgetError, match=r"does not fit the board: [\d,]+ bytes too many in RAM$") as caught:
        build(project, DEVICE)
    assert caught.value.exit_code == 3
    change_main(project, "", before="static const char constant[1024 * 1024] = {1};")
    path = project / "src" / "main.c"
    path.write_text(path.read_text().replace("large[5]", "large[constant[(unsigned char)large[5]]]"))
    with pytest.raises(OverBudgetError, match=r"[\d,]+ bytes too many in FLASH, [\d,]+ bytes too many in RAM$"):
        build(project, DEVICE)


def test_a_link_error_says_what_is_missing(project):
    shutil.rmtree(project / "src")
    with pytest.raises(FedtinyError, match=r"does not link: [^;]*undefined reference to [`']main'"):
        build(project, DEVICE)


def test_a_folder_s_name_may_hold_anything(tmp_path):
    folder = tmp_path / "x,y = 'z' $1"
    write_export(folder, "qemu-m4")
    result = run_project(folder)
    assert result.exit_code == 0, result.text
    assert len(result.counts) == 6


def test_every_region_size_can_be_enforced(project):
    """Sizes that are no power of two are covered by several MPU regions."""
    regions = tuple(
        dataclasses.replace(region, size=147_456 if region.kind == "ram" else 786_432) for region in DEVICE.memory
    )
    device = dataclasses.replace(DEVICE, memory=regions)
    assert all(isinstance(region, Memory) for region in regions)
    result = run_project(project, device)
    assert result.exit_code == 0, result.text
    change_main(project, "*(volatile uint32_t *)0x20024000u = 1u;")
    assert run_project(project, device).exit_code == 104


def test_the_parts_add_up_to_the_sections(project):
    made = artifacts()
    image = read_image(build(project, DEVICE).elf, DEVICE)
    in_flash = [s for s in image.sections if s.loaded]
    in_ram = [s for s in image.sections if s.address >= 0x2000_0000]
    assert image.flash_bytes == sum(s.size for s in in_flash)
    assert image.ram_bytes == sum(s.size for s in in_ram)
    assert tuple(image.flash) == FLASH_PARTS
    assert tuple(image.ram) == RAM_PARTS
    assert image.flash["model"] == len(made.ftm)
    assert image.flash["data"] == 0
    assert image.ram["arena"] == made.arena_bytes
    assert image.ram["stack"] == 4096
    end = max(s.address + s.size for s in in_flash)
    assert end == image.flash_bytes, "there is a gap between sections in flash"
    first = min(in_ram, key=lambda s: s.address)
    assert first.name == ".stack", "an overflowing stack must leave RAM"


@pytest.mark.parametrize("letters", range(1, 10))
def test_tables_take_what_is_planned_wherever_they_lie(tmp_path, letters):
    """Nor is there a gap beside them, whatever else the user's constants are aligned to."""
    made = artifacts(labels=("x" * letters, "", "abc"))
    write_export(tmp_path, "qemu-m4", made)
    wide = "static const long long wide[2] = {1, 2};\nstatic volatile long long data[2] = {1, 2};"
    change_main(tmp_path, "if (wide[data[0]] == 5) return 9;", before=wide)
    image = read_image(build(tmp_path, DEVICE).elf, DEVICE)
    assert image.flash["labels"] == label_bytes(made.labels)
    assert image.flash["selftest"] == selftest_bytes(made.input.elements, made.output.elements, 6)
    assert image.flash["model"] == len(made.ftm)
    in_flash = sorted((s for s in image.sections if s.address < 0x2000_0000), key=lambda s: s.address)
    ends = [0, *(s.address + s.size for s in in_flash)]
    assert [s.address for s in in_flash] == ends[:-1]
    assert image.flash["data"] == 16
    assert _load_address(tmp_path, ".data") == ends[-1]


def _load_address(folder, section: str) -> int:
    command = ["arm-none-eabi-objdump", "-h", str(folder / ".fedtiny" / "firmware.elf")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(line.split() for line in shown.splitlines() if line.split()[1:2] == [section])
    return int(row[4], 16)


def test_port_code_is_strict_c99(project, monkeypatch):
    monkeypatch.setattr(devices, "COMPILER_FLAG", ".*")  # a board file may not ask for these
    device = dataclasses.replace(DEVICE.emulator, cflags=(*DEVICE.emulator.cflags, *STRICT))
    build(project, dataclasses.replace(DEVICE, emulator=device))


def test_symbols_keep_to_the_prefix(project):
    """Nothing but what the language and the user's main need is named otherwise."""
    shown = subprocess.run(
        ["arm-none-eabi-nm", "--extern-only", "--defined-only", str(build(project, DEVICE).elf)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    external = {line.split()[-1] for line in shown.splitlines()}
    allowed = {"main", "memcpy", "memset"}
    assert {name for name in external if not name.startswith(("ft_", "FT_", "__"))} <= allowed


def test_a_missing_program_is_named_with_its_package(project, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("qemu") else f"/usr/bin/{name}")
    with pytest.raises(ToolMissingError, match="qemu-system-arm is not installed: install the Debian package qemu-sys"):
        require_tools(DEVICE)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolMissingError, match="gcc-arm-none-eabi and libnewlib-arm-none-eabi"):
        build(project, DEVICE)


def test_without_a_host_compiler_the_count_is_absent_and_said_so(project, monkeypatch):
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("cc", "gcc", "clang") else real(name))
    result = run_project(project)
    assert result.counts is None
    assert "no C compiler for this machine" in result.uncounted
    assert result.outputs == artifacts().golden_outputs.tobytes()


def test_a_compiler_error_is_one_line(project):
    change_main(project, "this is no C")
    with pytest.raises(FedtinyError, match=r"does not compile: .*main\.c:\d+:\d+: error") as caught:
        build(project, DEVICE)
    assert "\n" not in str(caught.value)


def test_sections_of_no_part_are_refused(project):
    change_main(project, "if (odd[0] != 0) return 9;", before='__attribute__((section(".odd"))) volatile char odd[8];')
    with pytest.raises(FedtinyError, match=r"section \.odd of 8 bytes belongs to no part"):
        read_image(build(project, DEVICE).elf, DEVICE)


def test_a_file_that_is_no_elf_is_refused(tmp_path):
    for content in (b"", b"\x7fELF", b"not an elf file at all", b"\x7fELF\x01\x01\x01" + bytes(60)):
        (tmp_path / "x.elf").write_bytes(content)
        with pytest.raises(FedtinyError):
            read_image(tmp_path / "x.elf", DEVICE)
