"""Writes an output for good: whole under its name, or not at all.

Flow: objects, compression > [files] > the outputs' folder
Never: a file under its final name before its bytes are on disk.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pydicom

from dicomnode.volumes.headers import quiet_reading


def encode_instance(instance: pydicom.Dataset) -> memoryview:
    """Return an instance as the bytes of a Part-10 file."""
    buffer = BytesIO()
    with quiet_reading():
        pydicom.dcmwrite(buffer, instance, enforce_file_format=True)
    return buffer.getbuffer()


def write_file(path: Path, content: memoryview) -> None:
    """Write a file, flush its bytes, and only then give it its name; raises OSError."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
