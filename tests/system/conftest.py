"""A disk of a test's own, which may be filled, remounted and taken away.

Flow: tests/conftest > [conftest] > tests/system
Never: the disk of this machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK = "size=24m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a small disk that may be filled, remounted and taken away."""
    if os.geteuid() != 0:
        pytest.skip("a disk of its own: run as root, which may mount a small tmpfs")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
