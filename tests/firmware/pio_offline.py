"""PlatformIO without its registry: a core folder whose build tool is the SCons that pip installed.

PlatformIO downloads `tool-scons` before its first build. This writes a package of that name and version which
starts pip's SCons instead; nothing else is faked.

    python pio_offline.py CORE_DIR        then run pio with PLATFORMIO_CORE_DIR=CORE_DIR
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NAME = "tool-scons"


def prepare(core: Path) -> dict[str, str]:
    """Write the package; return the environment variables that PlatformIO needs."""
    from platformio.dependencies import get_core_dependencies

    version = get_core_dependencies()[NAME].lstrip("~^>=")
    package = core / "packages" / NAME
    package.mkdir(parents=True, exist_ok=True)
    manifest = {"name": NAME, "version": version, "description": "pip's SCons", "system": "*"}
    spec = {"owner": "platformio", "id": None, "name": NAME, "requirements": None, "uri": None}
    installed = {"type": "tool", "name": NAME, "version": version, "spec": spec}
    (package / "package.json").write_text(json.dumps(manifest))
    (package / ".piopm").write_text(json.dumps(installed))
    (package / "scons.py").write_text("from SCons.Script import main\n\nmain()\n")
    return {"PLATFORMIO_CORE_DIR": str(core), "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no"}


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
