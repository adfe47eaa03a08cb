"""An output as the bytes of its file.

Flow: objects, compression > [files]
Never: a file written here (`durable` does that).
"""

from __future__ import annotations

from io import BytesIO

import pydicom

from dicomnode.volumes.headers import quiet_reading


def encode_instance(instance: pydicom.Dataset) -> memoryview:
    """Return an instance as the bytes of a Part-10 file."""
    buffer = BytesIO()
    with quiet_reading():
        pydicom.dcmwrite(buffer, instance, enforce_file_format=True)
    return buffer.getbuffer()
