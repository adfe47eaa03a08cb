"""A stand-in PACS for the demonstration: a Storage SCP on loopback that keeps what it gets, byte for byte.

Flow: a node's outbox > [pacs] > files, for run to compare
Never: durability, an index, any port but loopback's: it plays somebody else's archive and is no part of the node.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.uid import (
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    SpatialRegistrationStorage,
)
from pynetdicom import AE, evt

from dicomnode.status import StoreStatus

AE_TITLE = "DEMO_PACS"
HOST = "127.0.0.1"
FOLDERS: Mapping[str, str] = {
    SpatialRegistrationStorage: "REG",
    PositronEmissionTomographyImageStorage: "PT",
    SecondaryCaptureImageStorage: "fused",
}


class StandInPacs:
    """What the stand-in received; `port` is where it listens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Return how many instances each of `FOLDERS` holds."""
        with self._lock:
            return dict(self._count)

    def files(self, name: str) -> list[Path]:
        """Return the files of one of `FOLDERS`, in the order of their arrival."""
        return sorted((self.folder / name).glob("*.dcm"))

    def store(self, event: Any) -> int:
        """Write one instance as it came, and answer Success."""
        name = FOLDERS[event.context.abstract_syntax]
        with self._lock:
            self._count[name] += 1
            number = self._count[name]
        path = self.folder / name / f"{number:04d}.dcm"
        path.write_bytes(event.encoded_dataset())
        return StoreStatus.SUCCESS


@contextmanager
def open_pacs(folder: Path) -> Iterator[StandInPacs]:
    """Listen on a free port of loopback until the `with` block ends; instances go into `REG`, `PT`, `fused` below."""
    pacs = StandInPacs(folder)
    entity = AE(ae_title=AE_TITLE)
    entity.maximum_pdu_size = 131072
    for sop_class, name in FOLDERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, pacs.store)])
    assert server is not None  # noqa: S101  not blocking, it returns the server
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()
