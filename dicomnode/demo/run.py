"""`dicomnode demo`: a synthetic patient goes through a whole node, and the result is compared with the truth.

Flow: cli > [run] > case, pacs, story, picture > app
Never: a shortcut past the node: everything enters by C-STORE and comes back by C-STORE.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom

from dicomnode.app import Node
from dicomnode.database.engine import open_database
from dicomnode.demo.case import MR_FOLDER, PET_FOLDER, Case, make_case, make_panels, measure_tre_mm
from dicomnode.demo.pacs import AE_TITLE as PACS_AE_TITLE
from dicomnode.demo.pacs import FOLDERS, HOST, StandInPacs, open_pacs
from dicomnode.demo.picture import write_picture
from dicomnode.demo.story import Story, follow
from dicomnode.digests import digest_file
from dicomnode.send.scu import Caller, Instance, open_store_association, send_instance
from dicomnode.settings import (
    DestinationSettings,
    NodeSettings,
    PairingSettings,
    PeerSettings,
    ReceiveSettings,
    Settings,
)
from dicomnode.settings_limits import LimitSettings

GOAL_MM = 2.0
DEADLINE_S = 300.0
TIMEOUT_S = 30.0
QUIET_S = 0.5
RESERVE_BYTES = 64 * 2**20
EXIT_OK, EXIT_MISSED = 0, 1
PICTURE = "demo.png"
WRITTEN = (MR_FOLDER, PET_FOLDER, *FOLDERS.values())


def run_demo(output: Path) -> int:
    """Run the demonstration and write what came back, and a picture of it, into a folder.

    Parameters
    ----------
    output : Path
        Gets `MR/` and `PET/` with what the scanners send, `REG/`, `PT/` and `fused/` with the instances as the
        stand-in PACS received them, and `demo.png`. What an earlier demonstration left there goes.

    Returns
    -------
    exit_code : int
        0 if all three series came back whole and the mean error is under 2 mm, else 1.
    """
    story = Story()
    _clear(output)
    case = make_case(output)
    story.tell("patient", _describe(case))
    with (
        tempfile.TemporaryDirectory(prefix="dicomnode-demo-") as root,
        open_pacs(output) as pacs,
        _running_node(Path(root), pacs.port) as node,
    ):
        story.tell("started", f"node DICOMNODE on {HOST}:{node.port}, stand-in PACS on {HOST}:{pacs.port}")
        there = PeerSettings(name="node", ae_title=node.settings.node.ae_title, host=HOST, port=node.port)
        for scanner, files in (("DEMO_MR", case.mr_files), ("DEMO_PET", case.pet_files)):
            send_series(files, scanner, there)
            story.tell("sent", f"{len(files)} instances by C-STORE from {scanner}, each answered with Success")
        database = open_database(node.settings.database_url)
        try:
            is_delivered = follow(story, database, time.monotonic() + DEADLINE_S)
        finally:
            database.close()
    return _judge(story, case, pacs) if is_delivered else EXIT_MISSED


def _describe(case: Case) -> str:
    mr, pet = (" x ".join(str(n) for n in scan.array.shape) for scan in (case.mr, case.pet))
    return (
        f"a synthetic head: MR of {mr} voxels, PET of {pet}; "
        f"the PET's frame lies {case.displacement_mm:.1f} mm off the MR's"
    )


@contextmanager
def _running_node(root: Path, pacs_port: int) -> Iterator[Node]:
    """Run a whole node on a free port of loopback, with short periods of quiet."""
    pacs = PeerSettings(name="pacs", ae_title=PACS_AE_TITLE, host=HOST, port=pacs_port, may=("receive",))
    settings = Settings(
        node=NodeSettings(bind=HOST, storage_root=root),
        receive=ReceiveSettings(accept="any"),
        peers=(pacs,),
        destinations=(DestinationSettings(peer="pacs"),),
        pairing=PairingSettings(series_quiet_period_s=QUIET_S, study_quiet_period_s=QUIET_S),
        limits=LimitSettings(disk_reserve_bytes=RESERVE_BYTES),
    )
    node = Node(settings)
    node.start(port=0)
    try:
        yield node
    finally:
        node.stop()


def send_series(files: Sequence[Path], calling_ae_title: str, peer: PeerSettings) -> None:
    """Send DICOM files to a peer over one association, as a scanner does; raises what `send.scu` does."""
    instances = [_read_instance(path) for path in files]
    contexts = {instance.context for instance in instances}
    with open_store_association(peer, Caller(calling_ae_title, TIMEOUT_S), contexts) as association:
        for number, instance in enumerate(instances, 1):
            send_instance(association, peer, instance, number)


def _read_instance(path: Path) -> Instance:
    meta = pydicom.filereader.read_file_meta_info(path)
    uids = (meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    return Instance(*uids, path, digest_file(path))


def _judge(story: Story, case: Case, pacs: StandInPacs) -> int:
    """Compare what the stand-in PACS received with the truth, and draw it."""
    wanted = {"REG": 1, "PT": len(case.mr_files), "fused": len(case.mr_files)}
    found = pacs.counts()
    story.tell("received back", ", ".join(f"{name} {found.get(name, 0)} of {count}" for name, count in wanted.items()))
    if found != wanted:
        story.tell("missed", "a series did not come back whole")
        return EXIT_MISSED
    errors_mm = measure_tre_mm(case, pacs.files("REG")[0])
    mean_mm = float(errors_mm.mean())
    panels = make_panels(case, pacs.files("PT"), pacs.files("fused"))
    caption = (
        f"Synthetic head; PET {case.displacement_mm:.1f} mm off before, {mean_mm:.2f} mm after (mean over "
        f"{len(errors_mm)} points of the brain). Yellow: the MR's brain. Not for diagnosis."
    )
    write_picture(pacs.folder / PICTURE, panels, caption)
    story.tell("error", f"{mean_mm:.2f} mm in the mean, {errors_mm.max():.2f} mm at most, over {len(errors_mm)} points")
    story.tell("written", f"{', '.join(f'{name}/' for name in WRITTEN)} and {PICTURE} in {pacs.folder}")
    if mean_mm >= GOAL_MM:
        story.tell("missed", f"the mean error is {mean_mm:.2f} mm, less than {GOAL_MM:g} mm was wanted")
        return EXIT_MISSED
    story.tell("done", f"the mean error is under {GOAL_MM:g} mm and all three series came back")
    return EXIT_OK


def _clear(output: Path) -> None:
    """Remove what an earlier demonstration wrote, and nothing else."""
    for name in WRITTEN:
        for path in (output / name).glob("*.dcm"):
            path.unlink()
    (output / PICTURE).unlink(missing_ok=True)
