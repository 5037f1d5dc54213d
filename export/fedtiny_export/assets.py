"""Where the files that are not Python lie: `firmware/` and `devices/`.

A wheel carries them as package data, a checkout has them beside `export/`. This module only finds the
folder; it reads nothing in it.
"""

from __future__ import annotations

from pathlib import Path

from fedtiny_export.errors import FedtinyError


def asset_root() -> Path:
    """Return the folder that contains `firmware/` and `devices/`."""
    package = Path(__file__).resolve().parent
    for root in (package / "_assets", package.parents[1]):
        if (root / "devices").is_dir():
            return root
    raise FedtinyError(f"no devices/ folder in {package / '_assets'} or beside it; reinstall fedtiny")
