"""What comes back, or comes again, makes no work: a PACS that routes our results to us, a modality that repeats itself.

Flow: storescu > node > Orthanc, which sends on to the node > [test_loops]
Never: a wait for nothing to happen: another patient, sent after, is delivered meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from dicomnode.database.engine import open_database
from dicomnode.database.jobs import JobOutput, fetch_jobs, fetch_outputs
from tests.builders import NODE_AE
from tests.commitment_peers import Modality
from tests.peers_programs import LOOPBACK, Orthanc, free_port, send_with_dcmtk
from tests.system.test_crash_matrix import SLICES, Bench
from tests.waiting import wait_until

TIMEOUT_S = 120.0
ROUTING = "function OnStoredInstance(id, tags, metadata, origin)\n  SendToModality(id, 'node')\nend\n"


def _outputs(bench: Bench) -> list[JobOutput]:
    database = open_database(bench.settings.database_url)
    try:
        with database.read() as connection:
            return [output for job in fetch_jobs(connection) for output in fetch_outputs(connection, job.id)]
    finally:
        database.close()


def _returned(bench: Bench) -> list[int]:
    """Return how often each PET came back; the node takes no series of the other kinds from anybody."""
    return [output.returned for output in _outputs(bench) if output.kind == "pt"]


def test_results_that_are_routed_back_and_inputs_that_come_again_make_no_work(tmp_path: Path) -> None:
    script, port = tmp_path / "routing.lua", free_port()
    script.write_text(ROUTING, encoding="ascii")
    further = {"LuaScripts": [str(script)], "DicomModalities": {"node": [NODE_AE, LOOPBACK, port]}}
    with Orthanc(tmp_path / "orthanc", "PACS", further=further) as orthanc, Modality(port) as scanner:
        bench = Bench(tmp_path, tmp_path / "storage", orthanc, scanner)
        with bench.faults.make_node("", []) as node:
            bench.add_patient()
            first = list(bench.unsent)
            bench.live_to_the_end(node)
            wait_until(lambda: _returned(bench) == [1] * SLICES, TIMEOUT_S, "every PET came back")
            for _ in range(2):
                assert send_with_dcmtk(first, port, called=NODE_AE, calling="SCANNER").all_stored
            bench.add_patient()
            bench.live_to_the_end(node)
            wait_until(lambda: _returned(bench) == [1] * 2 * SLICES, TIMEOUT_S, "these came back too")

            assert len(node.list_rows("jobs")) == len(node.list_rows("pairs")) == 2
            assert {(row["state"], row["attempts"]) for row in node.list_rows("outbox")} == {("committed", 1)}
            assert len(node.list_rows("series")) == 4
            stored = list((bench.settings.node.storage_root / "store").rglob("*.dcm"))
            assert len(stored) == 2 * 2 * SLICES
