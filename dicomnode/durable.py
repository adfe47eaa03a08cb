"""Files and names that survive power loss.

Flow: settings_edit, database, receive, outputs, send > [durable] > the file system
Never: a file under its final name before its bytes are on disk.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file, flush its bytes, and only then give it its name; raises OSError. `sync_folder` makes that last."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder survive power loss; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
