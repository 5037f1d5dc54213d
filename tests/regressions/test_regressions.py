"""Every file in this folder is hostile and stays refused: in one clear line, at once, with nothing written.

Files that once made an export fail in another way, and one of each kind of attack. A new one is a file and a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedtiny_export.cli import export_main
from hostile import attempt

FOLDER = Path(__file__).parent
SHAPE = (8, 6, 4)  # that the .onnx files say their input has, if they say anything sane
REFUSED = {
    "announces-more-than-it-holds.onnx": "43200000000 bytes required",
    "buffer-out-of-range.tflite": "has buffer 1000 of 5",
    "constant-of-a-hundred-sides.onnx": "makes a constant of 100 sides; the limit is 8",
    "cut-in-half.tflite": "an offset leaves the file",
    "cycle.onnx": "topologically sorted",
    "gather-that-grows.onnx": "of type Gather is not supported",
    "name-of-two-lines.tflite": "tensor out??[2Jput has buffer 1000 of 5",
    "name-that-writes-a-line.onnx": "operator first?error: second?[2J of type Erf is not supported",
    "negative-side.onnx": "Negative dimension value",
    "no-subgraph.tflite": "0 subgraphs",
    "opcode-out-of-range.tflite": "has code 77 of 2",
    "operator-reads-itself.tflite": "is not written before",
    "pad-of-2-to-62.onnx": "do not fit 4 sides",
    "reads-what-comes-later.onnx": "topologically sorted",
    "resize-to-a-billion.onnx": "1 to 65,535 is supported",
    "root-beyond-the-end.tflite": "an offset leaves the file",
    "scale-of-nothing.tflite": "quantisation scale 0.0",
    "side-of-two-billion.tflite": "1 to 3 sides of 1 to 65,535",
    "sides-of-sixty-thousand.onnx": "the limit is 16,777,216",
    "steps-beyond-32-bit-floats.onnx": "its arithmetic cannot take the steps of",
    "stride-beyond-a-byte.onnx": "must lie between 0 and 255",
    "stride-of-nothing.tflite": "must lie between 1 and 255",
    "tensor-out-of-range.tflite": "tensor 1000 is named, but there are 7",
    "weights-cut-short.tflite": "holds 3 bytes",
    "weights-in-another-file.onnx": "outside the model's folder",
    "weights-not-finite.onnx": "not finite",
    "zero-point-beyond-int8.tflite": "does not fit int8",
}


def test_every_file_has_its_row_and_every_row_its_file():
    found = {path.name for path in FOLDER.iterdir() if path.suffix in (".onnx", ".tflite")}
    assert len(found) >= 20
    assert found == set(REFUSED)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_in_one_clear_line(name):
    assert REFUSED[name] in attempt(FOLDER / name)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_command_says_so_and_writes_nothing(name, tmp_path, capsys, recwarn):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(4, *SHAPE)))
    given = [str(FOLDER / name), "--target", "qemu-m4", "--out", str(tmp_path / "out")]
    if name.endswith(".onnx"):
        given += ["--calibration", str(tmp_path / "x.npz")]
    with pytest.raises(SystemExit) as end:
        export_main(given)
    shown = capsys.readouterr()
    assert end.value.code == 1
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert REFUSED[name] in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]
    assert [str(one.message) for one in recwarn] == []
