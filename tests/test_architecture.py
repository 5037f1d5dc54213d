"""docs/architecture.md names every file of the tree, and no other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def described() -> set[str]:
    """Entries of the page's tables: a folder's heading is `### path/`, a row begins with `| name |`."""
    folder, names = "", set()
    for line in PAGE.read_text().splitlines():
        heading = re.match(r"### `(.+?)`", line)
        if heading:
            folder = "" if heading.group(1) == "./" else heading.group(1)
        row = re.match(r"\| `(.+?)` \|", line)
        if row:
            names |= {folder + name.strip("` ") for name in row.group(1).split("` `")}
    return names


def test_every_file_is_described_and_exists():
    assert sorted(tracked() - described()) == [], "in the tree, not on the page"
    assert sorted(described() - tracked()) == [], "on the page, not in the tree"
