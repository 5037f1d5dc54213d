"""Data files that somebody made to do harm: one line each, in little time and memory, and nothing is ever run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tiny_sets
from fedtiny_export.errors import FedtinyError

from fedtiny_train.data import cifar, idx, images, pickled, svhn, wav


class Runs:
    """An object whose pickle calls something."""

    def __init__(self, what, *arguments):
        self.call = (what, arguments)

    def __reduce__(self):
        return self.call


def refused(read, path):
    """Read the file, which must be refused in one line that names it; return the line."""
    with pytest.raises(FedtinyError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert path.name in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["whole", "value", "key", "item"])
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path, protocol, place):
    touched = tmp_path / "touched"
    bad = Runs(os.system, f"touch {touched}")
    whole = {"whole": bad, "value": {"data": bad}, "key": {bad: 1}, "item": {"labels": [0, bad]}}[place]
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(whole, protocol=protocol))
    assert "it asks for" in refused(pickled.read, path) or protocol == 5
    assert not touched.exists()


U1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
BEGIN = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


def with_data(value: bytes) -> bytes:
    """Return a pickle of {"data": value}."""
    return b"\x80\x02}U\x04data" + value + b"s."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_data(b"cbuiltins\ngetattr\ncos\nsystem\n\x86R"), "it asks for 'builtins getattr'"),
        (with_data(b"cbuiltins\neval\nU\x011\x85R"), "it asks for 'builtins eval'"),
        (with_data(b"cnumpy\nload\nU\x011\x85R"), "it asks for 'numpy load'"),
        (with_data(b"cnumpy.core.multiarray\nscalar\n."), "it asks for 'numpy.core.multiarray scalar'"),
        (with_data(b"\x8c\x05numpy\x8c\x0dndarray.dumps\x93"), "it asks for 'numpy ndarray.dumps'"),
        (with_data(b"K\x01\x8c\x05dtype\x93"), "a int where a str belongs"),
        (with_data(b"(ios\nsystem\n"), "the instruction INST has no place"),
        (with_data(b"(cnumpy\nndarray\no"), "the instruction OBJ has no place"),
        (with_data(b"cnumpy\nndarray\n)\x81"), "the instruction NEWOBJ has no place"),
        (with_data(b"\x82\x01"), "the instruction EXT1 has no place"),
        (with_data(b"P1\n"), "the instruction PERSID has no place"),
        (with_data(b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"), "it calls dtype with what is not an array of bytes"),
        (with_data(b"cnumpy\ndtype\n)R"), "it calls dtype"),
        (with_data(b"cnumpy\nndarray\n)R"), "it calls ndarray"),
        (with_data(b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x0azlib_codec\x86R"), "it calls encode"),
        (with_data(b"c_codecs\nencode\n\x8c\x02\xc4\x80U\x06latin1\x86R"), "'latin-1' codec can't encode"),
        (with_data(BEGIN + b"(K\x01K\x02\x85cnumpy\ndtype\n\x89U\x02abtb"), "something else than bytes"),
        (with_data(BEGIN + b"(K\x01J\xff\xff\xff\xff\x85" + U1 + b"\x89U\x02abtb"), "shape does not fit"),
        (with_data(BEGIN + b"(K\x01M\xff\xffM\xff\xff\x86" + U1 + b"\x89U\x02abtb"), "shape does not fit its 2 bytes"),
        (with_data(BEGIN + b"(K\x01]" + U1 + b"\x89U\x02abtb"), "shape does not fit"),
        (with_data(BEGIN + b"(K\x01K\x02\x85" + U1 + b"\x89]tb"), "something else than bytes"),
        (with_data(BEGIN + b"K\x01\x85b"), "not enough values to unpack"),
        (with_data(b"}}b"), "a dict where a tuple belongs"),
        (with_data(b"}K\x01\x85b"), "it sets the state of a dict"),
        (with_data(b"h\x63"), "99"),
        (b"\x80\x02}]U\x01as.", "a list as a key"),
        (b"\x80\x02}(U\x01au.", "shorter"),
        (b"\x80\x02}", "exhausted before seeing STOP"),
        (b"\x80\x02K\x01.", "a int where a dict belongs"),
        (b".", "pop from empty list"),
        (b"", "exhausted before seeing STOP"),
        (b"\x80\x02}r\xff\xff\xff\xff.", None),  # a place in the memo that would need 32 GiB of table elsewhere
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc", "MemoryError"),
        (b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"abc", "MemoryError"),
        (b"\x80\x02" + b"]" * 400_000, "more than 300,000 instructions"),
        (b"\x80\x02]" + b"\x85" * 250_000 + b".", "a tuple where a dict belongs"),
    ],
)
def test_hostile_pickles_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    if said is None:
        assert pickled.read(path) == {}
        return
    line = refused(pickled.read, path)
    assert said in line
    assert "not a pickle of texts, numbers and byte arrays: " in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({b"labels": [1, 2]}, "data must be an array of 3072 bytes an image"),
        ({b"labels": [1, 2], b"data": b"abc"}, "data must be an array"),
        ({b"labels": [1, 2], b"data": tiny_sets.some(0, 2, 100)}, "data must be an array"),
        ({b"labels": [1], b"data": tiny_sets.some(0, 2, 3072)}, "labels must be a list of 2 whole numbers"),
        ({b"labels": [b"1", b"2"], b"data": tiny_sets.some(0, 2, 3072)}, "labels must be a list of 2 whole numbers"),
        ({b"data": tiny_sets.some(0, 2, 3072)}, "labels must be a list of 2 whole numbers"),
        ({b"labels": [], b"data": tiny_sets.some(0, 0, 3072)}, "it must hold labels from 0 to 9"),
    ],
)
def test_good_pickles_of_something_else(tmp_path, content, said):
    path = tiny_sets.cifar10(tmp_path) / "data_batch_5"
    path.write_bytes(tiny_sets.pickle_of_python_2(content))
    assert said in refused(lambda path: cifar.read_cifar10(tmp_path), path)


def mat(*elements: bytes) -> bytes:
    """Return a MATLAB file of these elements."""
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def element(kind: int, content: bytes) -> bytes:
    """Return one element; content is padded, unless it is a compressed one."""
    padding = b"" if kind == 15 else bytes(-len(content) % 8)
    return struct.pack("<II", kind, len(content)) + content + padding


def matrix(name: bytes, shape: tuple[int, ...], stored: int, content: bytes, kind: int = 9) -> bytes:
    """Return a variable."""
    flags = element(6, struct.pack("<II", kind, 0))
    sizes = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + sizes + element(1, name) + element(stored, content))


def bomb(shape=(32, 32, 3, 1_000_000), size=400_000_000) -> bytes:
    """Return a variable of few bytes that unpacks to many."""
    head = matrix(b"X", shape, 2, b"")
    head = struct.pack("<II", 14, len(head) + size) + head[8:-4] + struct.pack("<I", size)
    packer = zlib.compressobj(1)
    return element(15, packer.compress(head) + packer.compress(bytes(size)) + packer.flush())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it does not begin as one"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "it does not begin as one"),
        (mat(), "it has no variable X or y"),
        (mat(element(99, b"12345678")), "it has an element of type 99"),
        (mat(struct.pack("<II", 14, 0xFFFFFFFF)), "ends in the middle"),
        (mat(element(15, b"not zlib")), "decompressing data"),
        (mat(element(15, zlib.compress(b""))), "ends in the middle"),
        (
            mat(
                element(15, zlib.compress(element(15, zlib.compress(b"")))),
            ),
            "an element of type 15",
        ),
        (mat(matrix(b"X", (32, 32, 3, 2), 2, bytes(10))), "X has another size than its shape"),
        (mat(matrix(b"X", (32, 32, 3, -1), 2, bytes(10))), "X has another size than its shape"),
        (mat(matrix(b"X", (1 << 30,) * 8, 2, bytes(10))), "X has another size than its shape"),
        (mat(matrix(b"X", (0, 32, 3, 2), 2, b"")), "it has no variable y"),
        (mat(matrix(b"X", (32,), 99, bytes(32))), "X is no array of real numbers"),
        (mat(matrix(b"X", (32,), 2, bytes(32), kind=3)), "X is no array of real numbers"),
        (mat(*[matrix(b"z", (1,), 2, b"1")] * 101, matrix(b"X", (1,), 2, b"1")), "it has no variable X or y"),
        (mat(bomb()), "X has another size than its shape"),
        (mat(bomb(shape=(400_000_000,))), "X has another size than its shape"),  # as large as it says, but too large
    ],
)
def test_hostile_matlab_files_are_refused_in_one_line(tmp_path, content, said):
    path = tiny_sets.svhn(tmp_path) / "train_32x32.mat"
    path.write_bytes(content)
    assert said in refused(lambda path: svhn.read(tmp_path), path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it does not begin as one"),
        (b"\x00\x00\x0d\x03" + bytes(12), "it does not begin as one of bytes with 3 axes"),
        (b"\x00\x00\x08\x01" + bytes(12), "it does not begin as one of bytes with 3 axes"),
        (b"\x00\x00\x08\x03\x00", "with -11 bytes"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "shape (4294967295, 4294967295, 4294967295) with 0 bytes"),
        (tiny_sets.idx(np.zeros((2, 3, 4))) + b"\x00", "shape (2, 3, 4) with 25 bytes"),
        (tiny_sets.idx(np.zeros((2, 3, 4)))[:-1], "shape (2, 3, 4) with 23 bytes"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_hostile_idx_files_are_refused_in_one_line(tmp_path, content, said, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert said in refused(lambda path: idx.read_array(path, 3), path)


def test_gzip_files_that_are_damaged_or_a_bomb(tmp_path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(tiny_sets.idx(np.zeros((2, 3, 4))))
    path.write_bytes(whole[:-9])
    assert "Compressed file ended" in refused(lambda path: idx.read_array(path, 3), path)
    path.write_bytes(b"\x00\x00\x08\x03" + bytes(100))
    assert "Not a gzipped file" in refused(lambda path: idx.read_array(path, 3), path)
    content = io.BytesIO()
    with gzip.open(content, "wb", compresslevel=1) as file:
        file.write(bytes(80 << 20))
    path.write_bytes(content.getvalue())
    assert "unpacks to more than 67,108,864 bytes" in refused(lambda path: idx.read_array(path, 3), path)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = tiny_sets.mnist(tmp_path / "mnist")
    path = folder / "train-images-idx3-ubyte.gz"
    path.unlink()
    os.mkfifo(path)
    assert "is not a file" in refused(lambda path: idx.read_mnist(tmp_path), path)


def png(width: int, height: int, depth: int = 8, kind: int = 2, rows: bytes = b"") -> bytes:
    """Return a PNG whose header says what it likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SMALL = png(6, 5, rows=bytes(5 * 19))
NOISE = png(6, 5, rows=b"".join(b"\0" + tiny_sets.some(row, 18).tobytes() for row in range(5)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no PNG, JPEG or BMP file"),
        (b"hello", "it is no PNG, JPEG or BMP file"),
        (b"GIF89a" + bytes(100), "it is no PNG, JPEG or BMP file"),
        (SMALL[:-30], "it is no PNG, JPEG or BMP file"),
        (NOISE[:-60], "truncated"),
        (SMALL[:20], ""),
        (SMALL.replace(b"IDAT", b"IDAU"), ""),
        (png(6, 5, depth=16, kind=0, rows=bytes(5 * 13)), "has pixels of mode I;16"),
        (png(6, 5, rows=bytes(10)), ""),
        (png(0, 5), ""),
        (png(7, 5, rows=bytes(5 * 22)), "has 7 x 5 pixels, but "),
        (png(60_000, 60_000), "Image size (3600000000 pixels) exceeds limit"),
        (png(10_000, 10_000), "has 10000 x 10000 pixels, but "),
        (png(0x7FFFFFFF, 0x7FFFFFFF), "exceeds limit"),
        (b"BM" + b"\xff" * 60, ""),
        (b"\xff\xd8\xff\xe0" + b"\xff" * 60, ""),
    ],
)
def test_hostile_images_are_refused_in_one_line(tmp_path, content, said, recwarn):
    folder = tiny_sets.pictures(tmp_path / "d", ("a", "b"), 5)
    path = folder / "b" / "002.png"
    path.write_bytes(content)
    assert said in refused(lambda path: images.read(folder), path)
    assert not recwarn.list  # one line, and no warning beside it


def test_images_that_would_not_fit_are_not_unpacked(tmp_path):
    folder = tiny_sets.pictures(tmp_path / "d", ("a",), 5)
    path = folder / "a" / "000.png"
    path.write_bytes(png(10_000, 10_000))
    assert "10000 x 10000 pixels; the limit is 4,194,304" in refused(lambda path: images.read(folder), path)
    for i in range(60):
        (folder / "a" / f"{i:03}.png").write_bytes(png(2000, 2000))
    with pytest.raises(FedtinyError, match="60 images of 2000 x 2000 pixels are more than 600,000,000 bytes"):
        images.read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "a" / "notes.txt").write_text("x"), "notes.txt is no PNG, JPEG or BMP file; take it out"),
        (lambda d: (d / "a" / "deep").mkdir(), "deep is no PNG, JPEG or BMP file"),
        (lambda d: os.mkfifo(d / "a" / "x.png"), "x.png is no PNG, JPEG or BMP file"),
        (lambda d: (d / "c").mkdir(), "c has no image"),
        (lambda d: (d / "x.PNG").write_bytes(SMALL), "x.PNG lies in no class"),
        (lambda d: (d / "train").mkdir(), "has a folder train, but not both train and test"),
        (lambda d: [p.unlink() for p in d.rglob("004.png")], "no class has five images, so none is test"),
        (lambda d: [p.rename(d / f".{p.name}") for p in d.iterdir()], "has no folder in it"),
        (lambda d: (d / "a").rename(d / "a\x1bb"), "class 0 is called 'a\\x1bb'"),
    ],
)
def test_folders_that_are_no_set_of_images(tmp_path, change, said):
    folder = tiny_sets.pictures(tmp_path / "d", ("a", "b"), 5)
    change(folder)
    with pytest.raises(FedtinyError) as caught:
        images.read(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_test_that_train_does_not_have(tmp_path):
    tiny_sets.pictures(tmp_path / "train", ("a", "b"), 1)
    folder = tiny_sets.pictures(tmp_path / "test", ("a", "z"), 1)
    assert "is a class that is not in train; known: a, b" in refused(lambda path: images.read(tmp_path), folder / "z")


FORM = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it does not begin as one"),
        (b"RIFX" + bytes(4) + b"WAVE", "it does not begin as one"),
        (b"RIFF" + bytes(4) + b"WAVE", "it ends before its samples do"),
        (b"RIFF" + bytes(4) + b"WAVE" + b"data" + struct.pack("<I", 2) + b"ab", "it ends before its samples do"),
        (b"RIFF" + bytes(4) + b"WAVE" + FORM + b"data" + struct.pack("<I", 3) + b"abc", "it ends before its samples"),
        (
            b"RIFF" + bytes(4) + b"WAVE" + FORM + b"data" + b"\xff\xff\xff\xff" + b"abcd",
            "it ends before its samples do",
        ),
        (b"RIFF" + bytes(4) + b"WAVE" + (b"junk" + bytes(4)) * 10_000, "it ends before its samples do"),
        (b"RIFF" + bytes(4) + b"WAVE" + b"fmt " + struct.pack("<I", 1) + b"\x01\x00", "form 1, 0 channels, 0 Hz"),
    ],
)
def test_hostile_sounds_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    assert said in refused(lambda path: wav.read(path, 16_000, 1 << 20), path)


def test_sounds_with_other_chunks_are_read(tmp_path):
    path = tmp_path / "x.wav"
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\x00"  # a chunk of odd size is followed by a byte
    path.write_bytes(b"RIFF" + bytes(4) + b"WAVE" + odd + FORM + odd + b"data" + struct.pack("<Ihhh", 6, 1, -2, 3))
    assert wav.read(path, 16_000, 1 << 20).tolist() == [1, -2, 3]


MUTATIONS = r"""
import sys, time
from pathlib import Path
import numpy as np
import tiny_sets
from fedtiny_export.errors import FedtinyError
from fedtiny_train import data
from fedtiny_train.options import DataOptions

root, name, make, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
getattr(tiny_sets, make)(root / name)
options = DataOptions(data=name, data_dir=str(root / name))
if make == "user_file":
    options = DataOptions(data="d.npz", data_dir=str(root / name), public="p.npz")
files = sorted(path for path in (root / name).rglob("*") if path.is_file())
data.load(options)
rng, ends = np.random.default_rng(1), {"read": 0, "refused": 0}
for case in range(count):
    path = files[case % len(files)]
    good = path.read_bytes()
    raw = bytearray(good)
    at = int(rng.integers(min(len(raw), 400) if case % 3 else len(raw)))
    kind = case % 5
    if kind == 0:
        del raw[at:]
    elif kind == 1:
        raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 2:
        raw[at : at + 4] = b"\xff\xff\xff\x7f"
    else:
        for place in (at, int(rng.integers(len(raw))), int(rng.integers(min(len(raw), 200)))):
            raw[place] = int(rng.integers(256))
    path.write_bytes(raw)
    began = time.process_time()  # on a busy machine the clock on the wall says nothing
    try:
        data.load(options)
        ends["read"] += 1
    except FedtinyError as error:
        assert "\n" not in str(error), error
        assert len(str(error)) < 800, error
        ends["refused"] += 1
    spent = time.process_time() - began
    assert spent < 2, (case, path, spent)
    path.write_bytes(good)
data.load(options)
assert ends["refused"] > count / 8, ends
status = Path("/proc/self/status")  # where there is none, memory goes unmeasured
peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
assert peak < 1e9, peak
print(ends, peak)
"""


@pytest.mark.parametrize(
    ("name", "make", "count"),
    [
        ("cifar10", "cifar10", 300),
        ("cifar100", "cifar100", 300),
        ("svhn", "svhn", 300),
        ("mnist", "mnist", 300),
        ("cinic10", "cinic10", 150),
        ("npz", "user_file", 300),
        ("speech-commands", "speech_commands", 100),
    ],
)
def test_damaged_files_are_read_or_refused_in_little_time_and_memory(tmp_path, name, make, count):
    """In a process of its own, which a crash would end, and whose memory is its own."""
    command = [sys.executable, "-W", "error", "-c", MUTATIONS, tmp_path, name, make, str(count)]
    search = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search}, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
