"""Reading JSON and numpy files that anybody may have written: the content, or one FedtinyError that names the file.

Nothing is unpickled. What a file says about its own size is not believed before it is read; limits that depend on
the content's meaning are checked by the callers.
"""

from __future__ import annotations

import io
import json
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import FedtinyError

T = TypeVar("T")
MAX_TEXT_BYTES = 256 << 20

# All that json, zipfile and numpy are known to raise on damaged or hostile content.
_FAULTS = (
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, RuntimeError, NotImplementedError),
    *(OverflowError, MemoryError, RecursionError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def guarded(path: Path, what: str, read: Callable[[], T]) -> T:
    """Call `read`; turn whatever a bad file makes it raise into one line about `path`."""
    try:
        return read()
    except FedtinyError:
        raise
    except OSError as error:
        raise FedtinyError(f"{path}: {error.strerror or error}") from None
    except _FAULTS as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FedtinyError(f"{path}: not {what}: {said[:200]}") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file."""

    def read() -> str:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FedtinyError(f"{path}: larger than {MAX_TEXT_BYTES:,} bytes")
        return path.read_bytes().decode("utf-8")

    return guarded(path, "UTF-8 text", read)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    content = guarded(path, "a readable JSON file", lambda: json.loads(read_text(path)))
    if not isinstance(content, dict):
        raise FedtinyError(f"{path}: holds no JSON object")
    return content


def read_arrays(path: Path) -> dict[str, Any]:
    """All arrays of an `.npz` file by name; never a pickled object."""
    import numpy as np

    def read() -> dict[str, Any]:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
            if not hasattr(data, "files"):
                raise TypeError("it holds a single array")
            return {str(name): np.asarray(data[name]) for name in data.files}

    return guarded(path, "a usable .npz file", read)


def read_array(path: Path) -> Any:
    """The array of an `.npy` file; never a pickled object."""
    import numpy as np

    def read() -> Any:
        array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("it is no single array")
        return array

    return guarded(path, "a usable .npy file", read)
