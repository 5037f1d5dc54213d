"""No line of the runtime is there that no test has run: a line that cannot be reached is taken out instead."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

from seeds import write_seeds

ROOT = Path(__file__).parents[2]
MUTATIONS = 150_000


def executed_lines(folder: Path) -> dict[str, Counter[int]]:
    """How often each line of the runtime was run, by file, whichever file it was compiled into."""
    command = ["gcov", "--json-format", "--stdout", *map(str, sorted(folder.glob("*.gcda")))]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[int]] = {}
    for text in shown.splitlines():
        for file in json.loads(text)["files"]:
            if "firmware/src" in file["file"]:
                lines = found.setdefault(Path(file["file"]).name, Counter())
                for line in file["lines"]:
                    lines[line["line_number"]] += line["count"]
    return found


def test_every_line_of_the_runtime_is_run(need_tool, tmp_path):
    need_tool("gcov", "gcc")
    write_seeds(tmp_path / "seeds")
    sources = [
        *sorted((ROOT / "firmware/src").rglob("*.c")),
        *(ROOT / "tests/fuzz" / n for n in ("model.c", "replay.c")),
    ]
    flags = ["--coverage", "-O0", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'firmware/include'}"]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", "replay"], cwd=tmp_path, check=True)
    seeds = sorted((tmp_path / "seeds").iterdir())
    done = subprocess.run(["./replay", str(MUTATIONS), *map(str, seeds)], cwd=tmp_path, timeout=300)
    assert done.returncode == 0
    found = executed_lines(tmp_path)
    assert sum(len(lines) for lines in found.values()) > 500
    missed = {name: sorted(line for line, count in lines.items() if count == 0) for name, lines in found.items()}
    assert {name: lines for name, lines in missed.items() if lines} == {}
