"""Wheels carry firmware/ and devices/ as package data; an editable install reads them from the checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AssetsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Map the two asset folders into the wheel, file by file, so that no stale copy stays in the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the assets to a standard wheel; leave editable installs alone."""
        if version == "editable":
            return
        root = Path(self.root)
        for folder in ("firmware", "devices"):
            for path in sorted((root / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    target = f"fedtiny_export/_assets/{path.relative_to(root)}"
                    build_data["force_include"][str(path)] = target
