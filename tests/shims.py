"""Libraries of ours, in C, that are loaded into other programs by LD_PRELOAD; and what one of them kept.

Flow: tests, benchmarks > [shims] > gcc
Never: a library in the repository; one for a program that is not started by a test.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import find_peer_program

SOURCES = Path(__file__).parent / "native"


def build_shim(name: str, folder: Path) -> Path:
    """Compile `tests/native/<name>.c` into a library below a folder."""
    library = folder / f"{name}.so"
    command: list[str | Path] = [find_peer_program("gcc"), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", library, SOURCES / f"{name}.c", "-ldl"], check=True, timeout=60)
    return library


def lose_power(kept: Path, folder: Path, survived: Path) -> None:
    """Make `survived` what `folder` would be after power loss, by what `power_loss` kept of it."""
    _restore(kept, f"d{folder.stat().st_ino}", survived)


def _restore(kept: Path, name: str, place: Path) -> None:
    what = kept / name
    if name.startswith("d"):
        place.mkdir()
        for line in what.read_text(encoding="utf-8").splitlines() if what.exists() else ():
            entry, _, called = line.partition(" ")
            _restore(kept, entry, place / called)
    else:
        place.write_bytes(what.read_bytes() if what.exists() else b"")
