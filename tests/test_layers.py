"""Imports go one way: the exporter knows neither torch nor the trainer.

The trainer knows errors, atomic and untrusted files, and what a network takes in flash and on a board.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "tensorflow", "flwr", "sklearn", "ai_edge_litert", "tflite_micro"}
# inside a function, and only there
OPTIONAL = {"tflm/files.py": {"tflite_micro"}, "tflite/by_tensorflow.py": {"tensorflow"}}
SHARED = {
    "fedtiny_export.errors",
    "fedtiny_export.atomic",
    "fedtiny_export.untrusted",
    "fedtiny_export.ftm.fitting",
    "fedtiny_export.quant.scales",
}


def imported(path: Path) -> set[str]:
    """Every absolute module a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "fedtiny_export"}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "export/fedtiny_export").rglob("*.py")), ids=lambda p: p.name)
def test_the_exporter_imports_neither_torch_nor_the_trainer(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots & (HEAVY | {"fedtiny_train"}) == OPTIONAL.get(
        path.relative_to(ROOT / "export/fedtiny_export").as_posix(), set()
    )


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_packages_are_imported_when_they_are_needed(name):
    tree = ast.parse((ROOT / "export/fedtiny_export" / name).read_text())
    top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom) and node.level == 0}
    assert not {found.split(".")[0] for found in names} & HEAVY


@pytest.mark.parametrize("path", sorted((ROOT / "fedtiny_train").rglob("*.py")), ids=lambda p: p.stem)
def test_the_trainer_takes_only_errors_files_and_sizes_from_the_exporter(path):
    used = {name for name in imported(path) if name.startswith("fedtiny_export")} - {"fedtiny_export"}
    assert all(any((name + ".").startswith(shared + ".") for shared in SHARED) for name in used)


def test_no_pickle_and_no_eval_anywhere():
    for folder in ("fedtiny_train", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = {
                n.func.id
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            assert not calls & {"eval", "exec"}, path
            assert not {name.split(".")[0] for name in imported(path)} & {"pickle", "marshal", "shelve"}, path


@pytest.mark.parametrize("command", ["export_main", "check_main", "devices_main"])
def test_help_imports_nothing_heavy(command):
    code = (
        f"import sys\nfrom fedtiny_export.cli import {command} as main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'onnx', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_kernels_know_no_library_but_memory_functions():
    """The runtime includes string.h for memcpy and memset, and nothing else of the C library."""
    allowed = {"string.h", "stddef.h", "stdint.h"}
    for path in [*(ROOT / "firmware/src").rglob("*.[ch]"), *(ROOT / "firmware/include/fedtiny").iterdir()]:
        included = {
            line.split("<")[1].split(">")[0] for line in path.read_text().splitlines() if line.startswith("#include <")
        }
        assert included <= allowed, path
