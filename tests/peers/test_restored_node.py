"""A node and the one made of its backup do the same: both send what is owed, and a PACS cannot tell them apart.

Flow: dicomnode backup, restore > two nodes > [test_restored_node] > Orthanc
Never: the files of one node compared with those of the other alone: what they send counts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.builders import NodeProcess, Peer, make_config, run_command
from tests.commitment_peers import Modality
from tests.peers_programs import Orthanc, free_port
from tests.system.test_crash_matrix import OUTPUTS, SECTIONS, Bench
from tests.waiting import wait_until

TIMEOUT_S = 120.0


def is_sent(node: NodeProcess) -> bool:
    rows = node.list_rows("outbox")
    return len(rows) == OUTPUTS and {row["state"] for row in rows} <= {"sent", "committed"}


def test_a_restored_node_sends_what_the_first_one_owed_to_the_byte(tmp_path: Path) -> None:
    backup, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    with (
        Orthanc(tmp_path / "first", "PACS") as first,
        Orthanc(tmp_path / "second", "PACS") as second,
        Modality(free_port()) as scanner,
    ):
        bench = Bench(tmp_path, tmp_path / "storage", first, scanner)
        first.stop()  # away: everything is owed when the backup is made
        with bench.faults.make_node("", []) as node:
            bench.add_patient()
            bench.send()
            assert not bench.unsent
            wait_until(lambda: len(node.list_rows("outbox")) == OUTPUTS, TIMEOUT_S, "everything is owed")
            made = run_command("backup", "--config", bench.faults.config, "--json", backup)
            assert made.returncode == 0, made.stderr
            series = node.list_rows("series")
            first.start()
            wait_until(lambda: is_sent(node), TIMEOUT_S, "the first node has sent everything")
        assert run_command("verify", "--config", bench.faults.config, backup).returncode == 0
        shutil.rmtree(bench.settings.node.storage_root)

        peers = [Peer("pacs", "PACS", second.port, ("receive", "store"))]
        port = free_port()
        config = make_config(elsewhere, peers, port, SECTIONS)
        restored = run_command("restore", "--config", config, backup)
        assert restored.returncode == 0, restored.stderr
        assert run_command("verify", "--config", config).stdout.endswith("0 differences\n")
        with NodeProcess(config, port) as node:
            wait_until(lambda: is_sent(node), TIMEOUT_S, "the restored node has sent everything")
            assert node.list_rows("series") == series

        sent = first.fetch_files()
        assert len(sent) == OUTPUTS
        assert second.fetch_files() == sent
