"""On which line of a TOML file a key is: tomllib tells only of text that is no TOML.

A value is there as soon as the lines up to it are read, so reading ever more lines finds it, however it is written.
"""

from __future__ import annotations

import re
import tomllib


def line_of(text: str, where: str) -> int:
    """The first line of the value at a path such as `memory[1].size`, or of the nearest table around it."""
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", where)]
    found = [(line, depth) for line, depth in _depths(text, parts) if depth > 0]
    deepest = max((depth for _, depth in found), default=0)
    return next((line for line, depth in found if depth == deepest), 1)


def _depths(text: str, parts: list[str | int]) -> list[tuple[int, int]]:
    """(line, parts of the path that exist) whenever the lines so far are TOML; a value has its first line's number."""
    lines, begun, depths = text.splitlines(keepends=True), 1, []
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        depths.append((begun, _depth(table, parts)))
        begun = count + 1
    return depths


def _depth(value: object, parts: list[str | int]) -> int:
    for depth, part in enumerate(parts):
        if not (part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))):
            return depth
        value = value[part]  # type: ignore[index]
    return len(parts)
