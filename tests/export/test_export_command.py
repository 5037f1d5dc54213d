"""fedtiny-export as a user meets it: what it writes, what it refuses, and that nothing half-written is left."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import oracles
import pytest
from commands import call, export
from fedtiny_export.cli import check_main
from fedtiny_export.graph.ir import Op, Window
from fedtiny_export.tflite.write import write_tflite
from networks import Builder, residual
from runs import make_run

FIGURES = {
    "flash.code",
    "flash.model",
    "flash.total",
    "ram.arena",
    "ram.static",
    "ram.stack",
    "ram.total",
    "instructions",
}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "digits")


def test_an_export_holds_everything_the_contract_names(run, tmp_path, capsys):
    assert export(run, "--target", "esp32", "--out", tmp_path / "out") == 0
    out = tmp_path / "out"
    for name in [
        "model.tflite",
        "model.ftm",
        "report.txt",
        "report.json",
        "report.html",
        "golden.npz",
        "platformio.ini",
    ]:
        assert (out / name).is_file(), name
    report = json.loads((out / "report.json").read_text())
    assert report["board"] == "esp32"
    assert report["fits"] is True
    assert {figure["name"] for figure in report["figures"]} >= FIGURES
    assert report["accuracy"]["samples"] == 100
    assert report["accuracy"]["int8"] >= report["accuracy"]["float"] - 0.05
    assert "fits esp32" in capsys.readouterr().out
    golden = np.load(out / "golden.npz")
    model = (out / "model.tflite").read_bytes()
    count = golden["inputs"].shape[0]
    assert np.array_equal(oracles.tflite_micro(model, golden["inputs"]), golden["outputs"].reshape(count, -1))


def test_json_goes_to_stdout_and_words_to_stderr(run, tmp_path, capsys):
    assert export(run, "--target", "esp32dev", "--out", tmp_path / "o", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "o/report.json").read_text())
    assert "written to" in printed.err


def test_the_same_run_gives_the_same_folder(run, tmp_path):
    for name in "ab":
        export(run, "--target", "esp32c3", "--out", tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_second_export_renews_what_is_generated_and_keeps_what_is_the_users(run, tmp_path):
    other = make_run(tmp_path / "other", seed=5)
    export(run, "--target", "esp32", "--out", tmp_path / "o")
    before = tree(tmp_path / "o")
    mine = next((tmp_path / "o/src").iterdir())
    mine.write_text("/* mine */")
    (tmp_path / "o/platformio.ini").write_text("; mine\n")
    (tmp_path / "o/lib/other").mkdir()
    (tmp_path / "o/lib/other/x.h").write_text("/* also mine */")
    assert export(other, "--target", "esp32", "--out", tmp_path / "o") == 0
    after = tree(tmp_path / "o")
    assert mine.read_text() == "/* mine */"
    assert after["platformio.ini"] == b"; mine\n"
    assert "lib/other/x.h" in after
    assert after["model.ftm"] != before["model.ftm"]
    fresh = tmp_path / "fresh"
    export(other, "--target", "esp32", "--out", fresh)
    users = {str(mine.relative_to(tmp_path / "o")), "platformio.ini", "lib/other/x.h"}
    assert {k: v for k, v in after.items() if k not in users} == {
        k: v for k, v in tree(fresh).items() if k not in users
    }


def test_a_model_that_is_too_big_exits_3_and_says_what_would_help(tmp_path, capsys):
    big = make_run(tmp_path / "big", density=0.5, side=96, widths=(24, 24))
    assert export(big, "--target", "esp8266", "--out", tmp_path / "o") == 3
    said = capsys.readouterr()
    assert "bytes too many" in said.err
    assert "dram0" in said.err
    assert "the arena peaks at operator" in said.err
    assert "the next board up: " in said.err
    assert "does NOT fit esp8266" in said.out
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["fits"] is False
    over = next(f for f in report["figures"] if f["name"] == "ram.total")
    assert f"{over['value'] - over['limit']:,} bytes too many" in said.err


def test_a_missed_accuracy_gate_exits_4_and_over_budget_wins(run, tmp_path, capsys):
    labels = np.load(run / "samples.npz")
    np.savez(tmp_path / "wrong.npz", x=labels["x"], y=(labels["y"] + 1) % 10)
    arguments = ("--eval", tmp_path / "wrong.npz", "--min-accuracy", "0.9")
    assert export(run, "--target", "esp32", "--out", tmp_path / "b", *arguments) == 4
    assert "is below 0.9" in capsys.readouterr().err
    assert (tmp_path / "b/model.ftm").is_file()
    assert export(run, "--target", "esp32", "--out", tmp_path / "c", "--min-accuracy", "0.5") == 0
    big = make_run(tmp_path / "big", density=0.5, side=96, widths=(24, 24))
    data = np.load(big / "samples.npz")
    np.savez(big / "samples.npz", x=data["x"][:4], y=(data["y"][:4] + 1) % 10)
    assert export(big, "--target", "esp8266", "--out", tmp_path / "d", "--min-accuracy", "0.9") == 3
    said = capsys.readouterr().err
    assert "bytes too many" in said
    assert "is below 0.9" in said


def test_an_unknown_board_exits_2_and_names_the_nearest(run, tmp_path, capsys):
    assert export(run, "--target", "esp23", "--out", tmp_path / "o") == 2
    assert "did you mean esp32?" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def _npz_claiming(rows: int) -> bytes:
    """A zip whose only array announces far more rows than it has."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, 8, 8), }}"
    header += " " * (64 - (len(header) + 11) % 64) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x.npy", content + bytes(64))
    return data.getvalue()


def _damage(name: str, content: bytes):
    def damage(run: Path) -> None:
        (run / name).write_bytes(content)

    return damage


def _pooled(path: Path) -> Path:
    """A network with a depthwise convolution and a softmax, higher than the sparse runtime's kernels are."""
    builder = Builder((20, 8, 3), 0)
    builder.depthwise(2, (17, 3))
    builder.add(Op.MAX_POOL, window=Window((2, 2), (2, 2)))
    builder.dense(4)
    builder.add(Op.SOFTMAX, settings={"beta": 1.0})
    path.write_bytes(write_tflite(builder.int8()))
    return path


def test_an_int8_tflite_file_is_exported_like_a_run(tmp_path, capsys):
    path = tmp_path / "net.tflite"
    path.write_bytes(write_tflite(residual(3, 0.3)))
    assert export(path, "--target", "esp32", "--out", tmp_path / "o") == 0
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["accuracy"] == {"int8": None, "float": None, "samples": None}
    golden = np.load(tmp_path / "o/golden.npz")
    found = oracles.tflite_micro(path.read_bytes(), golden["inputs"])
    assert np.array_equal(found, golden["outputs"].reshape(len(found), -1))
    assert export(path, "--target", "esp32", "--out", tmp_path / "p", "--calibration", tmp_path / "x.npz") == 2
    assert "is int8 already" in capsys.readouterr().err
    x = np.random.default_rng(0).uniform(-1, 1, (10, 8, 8))
    np.savez(tmp_path / "e.npz", x=x, y=np.arange(10) % 5)
    assert export(path, "--target", "esp32", "--out", tmp_path / "q", "--eval", tmp_path / "e.npz") == 0
    assert "float unknown" in (tmp_path / "q/report.txt").read_text()


def test_what_the_sparse_runtime_lacks_is_named_and_the_other_runtime_offered(tmp_path, capsys):
    path = _pooled(tmp_path / "net.tflite")
    assert export(path, "--target", "esp32", "--out", tmp_path / "o") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has no kernel for kernel over 16 rows high: export with --runtime tflm" in said
    assert not (tmp_path / "o").exists()
    assert export(path, "--target", "esp32", "--out", tmp_path / "o", "--runtime", "tflm") == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        *("CMakeLists.txt", "README.md", "components", "golden.npz", "model.tflite", "partitions.csv"),
        *("platformio.ini", "report.html", "report.json", "report.txt", "sdkconfig.defaults", "src"),
    ]
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["runtime"] == "tflm"
    assert {figure["name"] for figure in report["figures"]} >= FIGURES
    assert any("code is not counted" in note for note in report["notes"])
    golden = np.load(tmp_path / "o/golden.npz")
    found = oracles.tflite_micro((tmp_path / "o/model.tflite").read_bytes(), golden["inputs"])
    assert np.array_equal(found, golden["outputs"].reshape(len(found), -1))


def test_a_model_that_is_too_big_for_tflite_micro_exits_3(tmp_path, capsys):
    builder = Builder((160, 160, 4), 0)
    builder.conv(8, 1)
    builder.add(Op.MAX_POOL, window=Window((8, 8), (8, 8)))
    path = tmp_path / "net.tflite"
    path.write_bytes(write_tflite(builder.int8()))
    assert export(path, "--target", "esp8266", "--out", tmp_path / "o", "--runtime", "tflm") == 3
    assert "ram.arena needs 307,200 bytes" in capsys.readouterr().err


def test_an_export_is_not_renewed_for_another_runtime(run, tmp_path, capsys):
    export(run, "--target", "esp32", "--out", tmp_path / "o")
    before = tree(tmp_path / "o")
    assert export(run, "--target", "esp32", "--out", tmp_path / "o", "--runtime", "tflm") == 1
    assert "for the runtime ft" in capsys.readouterr().err
    assert tree(tmp_path / "o") == before


def test_an_export_for_tflite_micro_cannot_be_checked(run, tmp_path, capsys):
    assert export(run, "--target", "esp32", "--out", tmp_path / "o", "--runtime", "tflm") == 0
    assert call(check_main, tmp_path / "o") == 1
    assert "whose firmware cannot be checked here" in capsys.readouterr().err


REFUSED = {
    "no model": lambda run: (run / "model.onnx").unlink(),
    "empty model": _damage("model.onnx", b""),
    "garbage model": _damage("model.onnx", bytes(range(256)) * 9),
    "cut model": lambda run: (run / "model.onnx").write_bytes((run / "model.onnx").read_bytes()[:900]),
    "no ranges": lambda run: (run / "ranges.json").unlink(),
    "broken ranges": _damage("ranges.json", b"{"),
    "ranges of another network": _damage("ranges.json", b'{"input": {"min": 0, "max": 1}}'),
    "broken samples": _damage("samples.npz", b"PK\x03\x04nothing"),
    "samples of another shape": lambda run: np.savez(run / "samples.npz", x=np.zeros((3, 5, 5)), y=np.zeros(3, int)),
    "labels out of range": lambda run: np.savez(run / "samples.npz", x=np.zeros((3, 8, 8)), y=np.full(3, 77)),
    "broken summary": _damage("summary.json", b"\xff\xfe"),
    "nested summary": _damage("summary.json", b"[" * 100_000),
    "half a surrogate as a label": _damage(
        "summary.json", b'{"class_names": ["\\ud800", "", "", "", "", "", "", "", "", ""]}'
    ),
    "an array that claims a terabyte": _damage("samples.npz", _npz_claiming(10**12)),
    "a pickled array": lambda run: np.savez(run / "samples.npz", x=np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_corrupt_run_exits_1_with_one_line_and_leaves_nothing(case, tmp_path, capsys):
    run = make_run(tmp_path / "run")
    REFUSED[case](run)
    assert export(run, "--target", "esp32", "--out", tmp_path / "out/esp32") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert [p for p in tmp_path.rglob("*") if "esp32" in p.name] == []


def test_a_folder_that_is_not_ours_is_never_written_into(run, tmp_path, capsys):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/thesis.txt").write_text("x")
    assert export(run, "--target", "esp32", "--out", tmp_path / "o") == 1
    assert "is not an export" in capsys.readouterr().err
    assert list((tmp_path / "o").iterdir()) == [tmp_path / "o/thesis.txt"]


def test_a_folder_of_another_board_is_left_alone(run, tmp_path, capsys):
    export(run, "--target", "qemu-m4", "--out", tmp_path / "o")
    before = tree(tmp_path / "o")
    assert export(run, "--target", "esp32", "--out", tmp_path / "o") == 1
    assert "holds an export for qemu-m4" in capsys.readouterr().err
    assert tree(tmp_path / "o") == before


def test_an_empty_folder_is_as_good_as_none(run, tmp_path):
    (tmp_path / "o").mkdir()
    assert export(run, "--target", "esp32", "--out", tmp_path / "o") == 0


def test_an_onnx_file_needs_ranges_or_calibration(run, tmp_path, capsys):
    alone = tmp_path / "net.onnx"
    alone.write_bytes((run / "model.onnx").read_bytes())
    assert export(alone, "--target", "esp32", "--out", tmp_path / "o") == 1
    assert "--calibration" in capsys.readouterr().err
    assert export(alone, "--target", "esp32", "--out", tmp_path / "o", "--calibration", run / "samples.npz") == 0


def test_without_input_the_newest_run_is_taken(run, tmp_path, monkeypatch):
    make_run(tmp_path / "runs/older")
    newer = make_run(tmp_path / "runs/newer", seed=9)
    stamp = (newer / "summary.json").stat().st_mtime + 10
    __import__("os").utime(newer / "summary.json", (stamp, stamp))
    monkeypatch.chdir(tmp_path)
    assert export("--target", "esp32") == 0
    assert json.loads((tmp_path / "build/esp32/report.json").read_text())["source"] == "newer"


def test_the_process_never_loads_torch(run, tmp_path):
    code = (
        "import sys\nfrom fedtiny_export.cli import export_main\n"
        f"try:\n    export_main([{str(run)!r}, '--target', 'esp32', '--out', {str(tmp_path / 'o')!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'tensorflow', 'fedtiny_train'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_optimising_for_speed(tmp_path, capsys):
    run = make_run(tmp_path / "run", density=0.5)
    found = {}
    for aim in ("size", "speed"):
        assert export(run, "--target", "qemu-m4", "--out", tmp_path / aim, "--optimize", aim) == 0
        report = json.loads((tmp_path / aim / "report.json").read_text())
        found[aim] = {figure["name"]: figure["value"] for figure in report["figures"]}
        assert all(0 <= layer["break_even"]["speed"] <= 1 for layer in report["layers"] if layer["weights"])
    assert found["speed"]["instructions"] < found["size"]["instructions"]
    assert found["speed"]["flash.total"] > found["size"]["flash.total"]
    assert export(run, "--target", "qemu-m4", "--out", tmp_path / "x", "--optimize", "speed", "--runtime", "tflm") == 2
    assert "--optimize chooses encodings of the runtime ft" in capsys.readouterr().err


def test_the_dense_column_is_what_dense_weights_would_take(tmp_path):
    run = make_run(tmp_path / "run")
    for flags in ([], ["--encoding", "dense"]):
        assert export(run, "--target", "qemu-m4", "--out", tmp_path / f"out{len(flags)}", *flags) == 0
    sparse, dense = (json.loads((tmp_path / f"out{count}" / "report.json").read_text()) for count in (0, 2))
    assert sparse["dense"] == {figure["name"]: figure["value"] for figure in dense["figures"]}
    assert sparse["dense"]["flash.model"] > max(f["value"] for f in sparse["figures"] if f["name"] == "flash.model")
