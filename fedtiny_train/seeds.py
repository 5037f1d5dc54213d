"""Randomness as a value: a generator for each (seed, purpose, round, client), never a global one.

Two uses with different keys never share a stream, so a run does not depend on the order in which clients are
computed. Nothing here draws a number.
"""

from __future__ import annotations

import zlib

import numpy as np


def rng(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return the generator of one purpose; the same keys give the same numbers everywhere."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])
