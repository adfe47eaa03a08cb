"""Compressed copies of written images, without loss, beside them: for the destinations that ask for them.

Flow: objects > [compression] > the outputs' folder; send reads where a copy lies
Never: a copy whose pixels are not those of the image to the bit; another UID: it is the same instance (PS3.3 C.12.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless

from dicomnode.digests import digest_file
from dicomnode.durable import sync_folder, write_file
from dicomnode.errors import StorageFailedError
from dicomnode.logs import get_logger
from dicomnode.outputs.files import encode_instance
from dicomnode.setting_values import Compression, OutputObject

log = get_logger()

SYNTAXES: Mapping[Compression, UID] = {"jpeg-ls": JPEGLSLossless, "jpeg-2000": JPEG2000Lossless}
# GDCM writes colours in JPEG 2000 as RGB, without the reversible transform (YBR_RCT) that validators ask for.
COMPRESSED: Mapping[Compression, frozenset[OutputObject]] = {
    "none": frozenset(),
    "jpeg-ls": frozenset({"pt", "rgb", "multiframe"}),
    "jpeg-2000": frozenset({"pt"}),
}


def find_copy_path(path: Path, compression: Compression) -> Path:
    """Return where the compressed copy of an output lies, made or not: `pt-0001.jpeg-ls.dcm` beside `pt-0001.dcm`."""
    return path.with_suffix(f".{compression}{path.suffix}")


def write_copies(outputs: Iterable[tuple[OutputObject, Path]], compression: Compression) -> dict[Path, str]:
    """Write a compressed copy of each image beside it; what cannot be compressed is logged, and sent as it is.

    Returns the SHA-256 of each copy that was written, by the path of its image.

    Raises
    ------
    StorageFailedError
        If a file cannot be read or written.
    """
    failed, folders, written = 0, set(), {}
    try:
        for kind, path in outputs:
            if kind in COMPRESSED[compression]:
                if _write_copy(path, compression):
                    written[path] = digest_file(find_copy_path(path, compression))
                else:
                    failed += 1
                folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        raise StorageFailedError(f"compressed copies could not be written: {error.strerror or error}") from error
    if failed:
        log.warning("outputs.not_compressed", compression=compression, instances=failed)
    return written


def _write_copy(path: Path, compression: Compression) -> bool:
    """Write one copy; False if no copy with the very pixels of the image came about."""
    instance = pydicom.dcmread(path)
    syntax = SYNTAXES[compression]
    frames = _encode(path, syntax)
    if not frames:
        return False
    pixels = instance.PixelData
    instance.PixelData = encapsulate(frames)
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True
    instance.file_meta.TransferSyntaxUID = syntax
    copy = find_copy_path(path, compression)
    write_file(copy, encode_instance(instance))
    decoded = _decode(copy)
    if decoded + b"\0" * (len(decoded) % 2) == pixels:
        return True
    copy.unlink()
    return False


def _encode(path: Path, syntax: UID) -> list[bytes]:
    """Return the frames of an image in a transfer syntax; none if GDCM cannot make them."""
    import gdcm  # noqa: PLC0415  the sending process needs the names of copies, and no codec

    types = {
        JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
        JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    }
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(types[syntax]))
    if not reader.Read():
        return []
    change.SetInput(reader.GetImage())
    if not change.Change():
        return []
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    count = int(fragments.GetNumberOfFragments())
    return [_as_bytes(fragments.GetFragment(number).GetByteValue().GetBuffer()) for number in range(count)]


def _decode(path: Path) -> bytes:
    import gdcm  # noqa: PLC0415  see `_encode`

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    return _as_bytes(reader.GetImage().GetBuffer()) if reader.Read() else b""


def _as_bytes(text: str | None) -> bytes:
    """Undo what GDCM's Python layer does to bytes: it hands them out as text, and as None where there are none."""
    return (text or "").encode("utf-8", "surrogateescape")
