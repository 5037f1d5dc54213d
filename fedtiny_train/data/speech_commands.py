"""Google's Speech Commands, version 0.02, as twelve classes: ten words, silence, and any other word.

The parts are those of the set's own lists: what is in testing_list.txt is test, what is in validation_list.txt
is left out, the rest is training data. A clip's speaker, named by its file, is its natural client; silence has
none. Of the other words, and of silence, as many are taken as an average word has clips: evenly spaced ones of
all other clips, and evenly spaced seconds of the background noise, its last fifth being test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fedtiny_export.errors import FedtinyError

from fedtiny_train.data import mfcc, wav
from fedtiny_train.data.dataset import Dataset, evenly
from fedtiny_train.data.official import Layout, find, read_bytes

PAGE = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
CLASSES = (*WORDS, "silence", "unknown")
SILENCE, UNKNOWN = CLASSES.index("silence"), CLASSES.index("unknown")
NOISE = "_background_noise_"
FILES = Layout(("speech_commands_v0.02", "speech_commands"), ("testing_list.txt", "validation_list.txt", NOISE, *WORDS))
MAX_LIST_BYTES, MAX_CLIP_BYTES, MAX_NOISE_BYTES = 1 << 20, 1 << 17, 4 << 20
MAX_NOISE_FILES = 50
CHUNK = 64  # clips at a time, since their frames take many times the memory of their coefficients

Sound = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Clip:
    """One second: a recording of a speaker, or a piece of noise from `start`."""

    path: Path
    label: int
    speaker: str = ""
    start: int = 0


def read(root: Path) -> Dataset:
    """Return the set as 49 x 10 coefficients a clip."""
    folder, _ = find("speech-commands", root, (FILES,), PAGE)
    testing, validation = (_listed(folder / name) for name in FILES.files[:2])
    recorded = _recorded(folder)
    noise = _noise(folder / NOISE)
    train = {key: clip for key, clip in recorded.items() if key not in testing and key not in validation}
    test = {key: clip for key, clip in recorded.items() if key in testing}
    chosen = [_balanced(folder, part, noise, is_test) for part, is_test in ((train, False), (test, True))]
    (x_train, y_train), (x_test, y_test) = (_features(part, noise) for part in chosen)
    owner = _owners(chosen[0])
    return Dataset("speech-commands", x_train, y_train, x_test, y_test, CLASSES, owner)


def _noise(folder: Path) -> dict[Path, Sound]:
    paths = sorted(folder.glob("*.wav"))
    if not 0 < len(paths) <= MAX_NOISE_FILES:
        raise FedtinyError(f"{folder} has {len(paths)} .wav files; it must have 1 to {MAX_NOISE_FILES}")
    return {path: wav.read(path, mfcc.RATE, MAX_NOISE_BYTES) for path in paths}


def _listed(path: Path) -> frozenset[str]:
    return frozenset(read_bytes(path, MAX_LIST_BYTES).decode("utf-8", "replace").split())


def _recorded(folder: Path) -> dict[str, _Clip]:
    """Return every recording by its name in the lists: WORD/SPEAKER_nohash_NUMBER.wav."""
    found = {}
    for word in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "_."):
        label = WORDS.index(word.name) if word.name in WORDS else UNKNOWN
        for path in sorted(word.glob("*.wav")):
            speaker, mark, _ = path.name.partition("_nohash_")
            if not mark:
                raise FedtinyError(f"{path} names no speaker; its name must be SPEAKER_nohash_NUMBER.wav")
            found[f"{word.name}/{path.name}"] = _Clip(path, label, speaker)
    return found


def _balanced(folder: Path, part: dict[str, _Clip], noise: dict[Path, Sound], is_test: bool) -> list[_Clip]:
    """Return the clips of the ten words, and as many of silence and of other words as a word has on average."""
    words = [clip for clip in part.values() if clip.label != UNKNOWN]
    others = [clip for clip in part.values() if clip.label == UNKNOWN]
    missing = set(range(len(WORDS))) - {clip.label for clip in words}
    if missing:
        what = "test" if is_test else "training"
        raise FedtinyError(f"{folder / WORDS[min(missing)]} has no {what} clip; get the whole set from {PAGE}")
    count = len(words) // len(WORDS)
    unknown = [others[i] for i in evenly(len(others), min(count, len(others)))]
    return words + _silence(noise, count, is_test) + unknown


def _silence(noise: dict[Path, Sound], count: int, is_test: bool) -> list[_Clip]:
    """Return `count` seconds of noise, the files in turn; none of training shares a sample with one of test."""
    clips: list[_Clip] = []
    for k, (path, sound) in enumerate(noise.items()):
        cut = len(sound) - len(sound) // 5
        first, last = (cut, len(sound)) if is_test else (0, cut)
        if last - first < mfcc.RATE:
            raise FedtinyError(f"{path} has {len(sound):,} samples; noise must last at least 5 seconds")
        own = count // len(noise) + (k < count % len(noise))
        starts = first + evenly(last - first - mfcc.RATE + 1, own)
        clips += [_Clip(path, SILENCE, start=int(start)) for start in starts]
    return clips


def _features(clips: list[_Clip], noise: dict[Path, Sound]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    x = np.empty((len(clips), mfcc.FRAMES, mfcc.COEFFICIENTS), dtype=np.float32)
    for at in range(0, len(clips), CHUNK):
        seconds = [_second(clip, noise) for clip in clips[at : at + CHUNK]]
        x[at : at + len(seconds)] = mfcc.mfcc(np.stack(seconds))
    return x, np.array([clip.label for clip in clips], dtype=np.int64)


def _second(clip: _Clip, noise: dict[Path, Sound]) -> Sound:
    """Return 16,000 samples: a shorter clip is followed by zeros, of a longer one the first second counts."""
    if clip.label == SILENCE:
        return noise[clip.path][clip.start : clip.start + mfcc.RATE]
    sound = wav.read(clip.path, mfcc.RATE, MAX_CLIP_BYTES)[: mfcc.RATE]
    return np.pad(sound, (0, mfcc.RATE - len(sound)))


def _owners(clips: list[_Clip]) -> npt.NDArray[np.int64]:
    numbers = {speaker: k for k, speaker in enumerate(sorted({clip.speaker for clip in clips} - {""}))}
    return np.array([numbers.get(clip.speaker, -1) for clip in clips], dtype=np.int64)
