"""PlatformIO without its registry: a core folder whose tools are the SCons of pip and the cppcheck of the system.

PlatformIO downloads `tool-scons` before its first build and `tool-cppcheck` before its first check. This writes
packages of those names and versions which start what is installed instead; nothing else is faked.

    python pio_offline.py CORE_DIR        then run pio with PLATFORMIO_CORE_DIR=CORE_DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

SCONS, CPPCHECK = "tool-scons", "tool-cppcheck"


def prepare(core: Path) -> dict[str, str]:
    """Write the packages; return the environment variables that PlatformIO needs."""
    scons = _package(core, SCONS, "pip's SCons")
    (scons / "scons.py").write_text("from SCons.Script import main\n\nmain()\n")
    program = shutil.which("cppcheck")
    if program is not None:
        (_package(core, CPPCHECK, "the system's cppcheck") / "cppcheck").symlink_to(program)
    return {"PLATFORMIO_CORE_DIR": str(core), "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no"}


def _package(core: Path, name: str, description: str) -> Path:
    from platformio.dependencies import get_core_dependencies

    version = get_core_dependencies()[name].lstrip("~^>=")
    package = core / "packages" / name
    package.mkdir(parents=True, exist_ok=True)
    manifest = {"name": name, "version": version, "description": description, "system": "*"}
    spec = {"owner": "platformio", "id": None, "name": name, "requirements": None, "uri": None}
    installed = {"type": "tool", "name": name, "version": version, "spec": spec}
    (package / "package.json").write_text(json.dumps(manifest))
    (package / ".piopm").write_text(json.dumps(installed))
    return package


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
