"""Says what is wrong with the place where everything is kept: gone, read-only, full.

Flow: cli|receive > [storage_root] > the file system
Never: a write (a full disk has no room for one); a folder made in the place of one that is gone.
"""

from __future__ import annotations

import os
from pathlib import Path


def find_storage_problem(folder: Path, reserve_bytes: int) -> str | None:
    """Return why nothing can be stored below a folder now, None where it can.

    Parameters
    ----------
    folder : Path
        The storage root, or a folder in it that is there while a node runs: without it, the disk is mounted no more.
    """
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}; is its disk mounted, and may the node's user read it?"
    if found.f_flag & os.ST_RDONLY:
        return f"{folder}: the file system is read-only; mount it so that the node may write"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder}: this user may not write there; give it to the node's user"
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < reserve_bytes:
        return f"{folder}: {free_bytes} bytes are free, limits.disk_reserve_bytes = {reserve_bytes} are needed"
    return None
