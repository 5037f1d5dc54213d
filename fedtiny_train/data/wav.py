"""Sound files: RIFF WAVE with one channel of 16-bit samples at a given rate, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from fedtiny_export.untrusted import guarded

from fedtiny_train.data.official import read_bytes

MAX_CHUNKS = 100
PCM = 1


def read(path: Path, rate: int, limit: int) -> npt.NDArray[np.int16]:
    """Return the samples of a file of at most `limit` bytes."""

    def run() -> npt.NDArray[np.int16]:
        content = read_bytes(path, limit)
        if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
            raise ValueError("it does not begin as one")
        is_known, at = False, 12
        for _ in range(MAX_CHUNKS):
            name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
            body = content[at + 8 : at + 8 + size]
            if len(name) < 4 or len(body) < size:
                break
            if name == b"fmt ":
                _check_form(body, rate)
                is_known = True
            if name == b"data" and is_known and size and size % 2 == 0:
                return np.frombuffer(body, dtype="<i2").astype(np.int16)
            at += 8 + size + size % 2
        raise ValueError("it ends before its samples do")

    return guarded(path, "a sound file of 16-bit samples", run)


def _check_form(body: bytes, rate: int) -> None:
    form, channels = (int.from_bytes(body[at : at + 2], "little") for at in (0, 2))
    found, bits = int.from_bytes(body[4:8], "little"), int.from_bytes(body[14:16], "little")
    if (form, channels, found, bits) != (PCM, 1, rate, 16):
        raise ValueError(
            f"form {form}, {channels} channels, {found} Hz, {bits} bits; "
            f"it must be form {PCM}, 1 channel, {rate} Hz, 16 bits"
        )
