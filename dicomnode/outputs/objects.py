"""All objects of one registration, made slice by slice and written for good.

Flow: jobs|cli > [objects] > files > outbox
Never: the database, the network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pydicom

from dicomnode.durable import sync_folder, write_file
from dicomnode.errors import StorageFailedError
from dicomnode.outputs.blending import make_blending
from dicomnode.outputs.files import encode_instance
from dicomnode.outputs.fused import make_fused_series
from dicomnode.outputs.multiframe import make_multiframe
from dicomnode.outputs.pet import make_pet_series
from dicomnode.outputs.registration_object import make_registration_object
from dicomnode.outputs.request import Kind, OutputRequest
from dicomnode.outputs.resampled import resample_moving
from dicomnode.volumes.headers import quiet_reading

__all__ = ["Kind", "OutputFile", "OutputRequest", "make_outputs", "write_outputs"]


@dataclass(frozen=True)
class OutputFile:
    """One written object, as the outbox needs to know it."""

    kind: Kind
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    transfer_syntax_uid: str
    path: Path
    size_bytes: int
    sha256: str


def make_outputs(request: OutputRequest) -> Iterator[tuple[Kind, pydicom.Dataset]]:
    """Make all objects of one registration, in the order they should be sent.

    Parameters
    ----------
    request : OutputRequest

    Returns
    -------
    iterator of (kind, Dataset)
        Those kinds that the settings ask for: "pt" slices and "rgb" slices in the order of k, "multiframe", then what
        refers to others: "reg" and "blending". Complete with file meta, and the same bytes for the same request. When
        both series stand in one frame of reference and the transform is not the identity, there is no "reg": it would
        give one frame two places.
    """
    resample = cache(partial(resample_moving, request))
    makers: Mapping[Kind, Callable[[], Iterator[Callable[[], pydicom.Dataset]]]] = {
        "pt": lambda: make_pet_series(request, resample()),
        "rgb": lambda: make_fused_series(request, resample()),
        "multiframe": lambda: iter([lambda: make_multiframe(request, resample())]),
        "reg": lambda: iter([lambda: make_registration_object(request)]),
        "blending": lambda: iter([lambda: make_blending(request, resample())]),
    }
    for kind, make in makers.items():
        if kind in request.settings.objects and (kind != "reg" or request.makes_registration_object):
            yield from _made_quietly(kind, make())


def write_outputs(request: OutputRequest, folder: Path) -> list[OutputFile]:
    """Make all objects and write each as `<kind>-<nnnn>.dcm`.

    Parameters
    ----------
    request : OutputRequest
    folder : Path
        Made when it is not there. A second run writes the same bytes over the same names.

    Returns
    -------
    list of OutputFile
        In the order they should be sent; all are on disk, names included.

    Raises
    ------
    StorageFailedError
        If the folder cannot be written; what was written whole stays, and a repeat completes it.
    """
    counts: Counter[Kind] = Counter()
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, instance in make_outputs(request):
            counts[kind] += 1
            files.append(_write_instance(kind, instance, folder / f"{kind}-{counts[kind]:04d}.dcm"))
        sync_folder(folder)
    except OSError as error:
        raise StorageFailedError(f"outputs could not be written: {error.strerror or error}") from error
    return files


def _made_quietly(
    kind: Kind, makers: Iterator[Callable[[], pydicom.Dataset]]
) -> Iterator[tuple[Kind, pydicom.Dataset]]:
    """Run each step of making with pydicom kept from quoting values, and nothing of the caller's."""
    while True:
        with quiet_reading():
            make = next(makers, None)
            if make is None:
                return
            instance = make()
        yield kind, instance


def _write_instance(kind: Kind, instance: pydicom.Dataset, path: Path) -> OutputFile:
    content = encode_instance(instance)
    write_file(path, content)
    return OutputFile(
        kind=kind,
        sop_instance_uid=str(instance.SOPInstanceUID),
        sop_class_uid=str(instance.SOPClassUID),
        series_uid=str(instance.SeriesInstanceUID),
        transfer_syntax_uid=str(instance.file_meta.TransferSyntaxUID),
        path=path,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
