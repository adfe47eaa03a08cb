"""`dicomnode doctor`: each thing that keeps a node from its work is named, and what is well is said to be.

Flow: cli/doctor > [test_doctor]
Never: a node beyond this process; `tests/system/test_receive_disk.py` has real ones.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicomnode.commitment import Reference, Request
from dicomnode.database.commitment_requests import claim_requests, finish_request, record_request
from dicomnode.database.commitments import claim_commitments, give_commitment_up, owe_commitments
from dicomnode.database.engine import Database, open_database
from dicomnode.database.index import open_association
from dicomnode.database.outbox import add_outbox_rows, claim_outbox, record_all_sent
from dicomnode.database.refusals import Refused, record_refusal
from dicomnode.database.turns import Turn
from dicomnode.running import announce_node, show_counts
from tests.certificates import Authority
from tests.commitment_peers import Pacs
from tests.databases import make_sqlite
from tests.dicomnode.cli.conftest import Run
from tests.dicomnode.cli.test_peers import echo_scp
from tests.rows import add_finished_job, due

FEW_DESCRIPTORS = 700
ANNOUNCE = """
import resource, sys
from pathlib import Path
from dicomnode.running import announce_node
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
with announce_node(Path(sys.argv[1])):
    print("announced", flush=True)
    sys.stdin.read()
"""
PEER = ["[[peers]]", 'name = "pacs"', 'ae_title = "PACS"', 'host = "127.0.0.1"', 'may = ["receive"]']


def write(config: Path, root: Path, *lines: str, reserve_bytes: int = 0) -> None:
    limits = ["[limits]", f"disk_reserve_bytes = {reserve_bytes}"]
    config.write_text("\n".join(["[node]", f'storage_root = "{root}"', *limits, *lines, ""]), encoding="utf-8")


def find(run: Run, config: Path, check: str) -> list[tuple[str, str]]:
    found = run("doctor", "--config", config, "--json").json["findings"]
    return [(finding["state"], finding["text"]) for finding in found if finding["check"] == check]


def test_what_is_well_is_said_to_be(run: Run, config: Path, database: Database, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    (root / "spool").mkdir()
    with echo_scp() as port:
        write(config, root, *PEER, f"port = {port}")
        ran = run("doctor", "--config", config)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert f"ok       storage      {root} can be written" in lines
    assert "ok       database     it answers, and can be written" in lines
    assert "ok       peer         pacs answers C-ECHO" in lines
    assert any(line.startswith("ok       model        cnn_sift, SHA-256 ") for line in lines)
    assert any(line.startswith("warning  node         no node runs on this storage root") for line in lines)


def test_a_storage_root_that_is_gone_or_full_is_a_problem(run: Run, config: Path, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    write(config, root)
    assert run("doctor", "--config", config).code == 2
    words = f"{root}: No such file or directory; is its disk mounted, and may the node's user read it?"
    assert find(run, config, "storage") == [("problem", words)]
    root.mkdir()
    write(config, root, reserve_bytes=1 << 60)
    ((state, words),) = find(run, config, "storage")
    assert state == "problem"
    assert words.endswith(f"bytes are free, limits.disk_reserve_bytes = {1 << 60} are needed")


@pytest.mark.parametrize(("ahead_s", "is_behind"), [(3600.0, True), (30.0, False)])
def test_a_clock_behind_what_was_received_is_a_problem(
    run: Run, config: Path, database: Database, tmp_path: Path, ahead_s: float, is_behind: bool
) -> None:
    write(config, tmp_path / "storage")
    with database.write() as connection:
        opened_at = time.time() + ahead_s
        open_association(connection, node="0" * 32, calling_ae="S", address="127.0.0.1", now=opened_at)
    ((state, text),) = find(run, config, "clock")
    assert (state == "problem") == is_behind
    written = datetime.fromtimestamp(opened_at, UTC).isoformat(timespec="seconds")
    assert (f"an association was opened at {written}" in text) == is_behind


def test_a_disk_that_is_not_mounted_is_a_problem(run: Run, config: Path, database: Database, tmp_path: Path) -> None:
    write(config, tmp_path / "storage")  # a node has made its database there, and its spool is gone
    ((state, words),) = find(run, config, "storage")
    assert (state, "is its disk mounted" in words) == ("problem", True)


def test_a_folder_that_is_gone_is_a_problem_where_the_database_knows_what_was_in_it(
    run: Run, config: Path, tmp_path: Path
) -> None:
    root, url = tmp_path / "storage", f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
    root.mkdir()
    make_sqlite(url)
    write(config, root, "[database]", f'url = "{url}"')
    ((state, words),) = find(run, config, "storage")
    assert (state, "nothing is kept there yet; has a node run, mount its disk" in words) == ("warning", True)
    ((_, words),) = find(run, config, "node")
    assert words.endswith("once its disk is mounted, start it: systemctl start dicomnode")
    database = open_database(url)
    with database.write() as connection:
        open_association(connection, node="0" * 32, calling_ae="S", address="127.0.0.1", now=1e9)
    database.close()
    words = f"{root}/spool: No such file or directory; is its disk mounted, and may the node's user read it?"
    assert find(run, config, "storage") == [("problem", words)]
    (root / "spool").mkdir()
    assert find(run, config, "storage") == [("ok", f"{root} can be written")]
    ((_, words),) = find(run, config, "node")
    assert words.endswith("; start it: systemctl start dicomnode")


def test_a_port_that_answers_below_an_empty_folder_is_a_problem(run: Run, config: Path, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config.write_text(f'[node]\nstorage_root = "{root}"\nport = {port}\n', encoding="utf-8")
        words = f"no node runs on this storage root, but node.port {port} answers: is its disk mounted, or has another"
        for state in ("problem", "warning"):
            ((found, text),) = find(run, config, "node")
            assert (found, text.startswith(words)) == (state, True)
            (root / "spool").mkdir(exist_ok=True)


def test_descriptors_are_counted_of_the_node_that_runs_not_of_this_shell(
    run: Run, config: Path, tmp_path: Path
) -> None:
    root = tmp_path / "storage"
    write(config, root)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, most[1]))
    try:
        ((state, words),) = find(run, config, "descriptors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    text = f"may open {FEW_DESCRIPTORS} files, [limits] may need 850; raise LimitNOFILE= of the service"
    assert (state, words) == ("warning", f"this user, in this shell, {text}")
    program = [sys.executable, "-c", ANNOUNCE, str(root), str(FEW_DESCRIPTORS)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"announced\n"
        found = find(run, config, "descriptors")
        node.communicate(timeout=30)
    assert found == [("warning", f"process {node.pid}, which runs the node, {text}")]
    assert find(run, config, "descriptors") == []  # nothing runs, and this shell may open enough


def test_a_database_that_nobody_made_and_a_peer_that_does_not_answer(run: Run, config: Path, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    root.mkdir()
    write(config, root, *PEER, "port = 1")
    ((state, words),) = find(run, config, "database")
    assert (state, "no such database" in words) == ("problem", True)
    ((state, words),) = find(run, config, "peer")
    assert (state, words.startswith("pacs (PACS at 127.0.0.1:1): no association")) == ("warning", True)


def test_a_database_that_only_reads_is_a_problem(run: Run, config: Path, database: Database, tmp_path: Path) -> None:
    database.close()
    root = tmp_path / "storage"
    path = root / "dicomnode.sqlite"
    write(config, root)
    header = bytearray(path.read_bytes())
    header[18] = 3  # a file format that this SQLite may read and not write: sqlite.org/fileformat2.html 1.3.3
    path.write_bytes(header)
    ((state, words),) = find(run, config, "database")
    assert (state, "readonly database" in words) == ("problem", True)


def test_certificates_are_looked_at(run: Run, config: Path, tmp_path: Path, authority: Authority) -> None:
    for days, state, words in ((-1, "problem", "expired at"), (10, "warning", "expires at")):
        identity = authority.sign("/CN=node", days=days)
        tls = [
            "[tls]",
            f'certificate = "{identity.certificate}"',
            f'key = "{identity.key}"',
            f'ca = "{authority.certificate}"',
        ]
        write(config, tmp_path, *tls)
        found = [finding for finding in find(run, config, "certificate") if words in finding[1]]
        assert [finding[0] for finding in found] == [state]
    write(config, tmp_path, *tls)
    identity.key.write_text("no key", encoding="ascii")
    assert find(run, config, "certificate")[0][0] == "problem"


def test_the_counts_of_a_running_node_are_shown(run: Run, config: Path, tmp_path: Path) -> None:
    root = tmp_path / "storage"
    write(config, root)
    counts = {'dicomnode_receive_limit_crossings{limit="pdu_bytes"}': 3}
    with announce_node(root) as announced:
        show_counts(announced, counts)
        (shown,) = run("doctor", "--config", config, "--json").json["counts"].values()
        assert shown == counts
        out = run("doctor", "--config", config).out
        assert 'dicomnode_receive_limit_crossings{limit="pdu_bytes"} 3\n' in out
    assert run("doctor", "--config", config, "--json").json["counts"] == {}
    assert list((root / "run").iterdir()) == []
    with announce_node(root) as announced:
        announced.with_suffix(".json").mkdir()  # it cannot be written: no reason to end
        show_counts(announced, counts)
        announced.with_suffix(".json").rmdir()
        announced.with_suffix(".new").unlink()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca", "CA")


def test_whose_commitment_messages_are_refused_and_who_does_not_take_ours(
    run: Run, config: Path, database: Database
) -> None:
    with database.write() as connection:
        record_refusal(connection, Refused("S\x1b[2J", "10.1.2.8", "report"), "nobody was asked", 1e9)
        record_request(connection, "scanner", Request("1.9", (Reference("1.2", "1.3"),)), 1e9, 10)
    [claimed] = claim_requests(database, Turn("scanner", 1e9, 60.0, 60.0), 1)
    with database.write() as connection:
        finish_request(connection, claimed, "failed", 1e9, "scanner: N-EVENT-REPORT: status 0x0112")

    assert find(run, config, "commitment") == [
        (
            "warning",
            "1 reports on storage commitment of 'S\\x1b[2J' at 10.1.2.8 refused, the last at "
            "2001-09-09 01:46:40+00:00: nobody was asked",
        ),
        (
            "warning",
            "scanner has not taken our report on 1 of its requests, the last of 2001-09-09 01:46:40+00:00: "
            "scanner: N-EVENT-REPORT: status 0x0112",
        ),
    ]


def test_who_is_asked_to_commit_and_what_is_not_committed(
    run: Run, config: Path, database: Database, tmp_path: Path
) -> None:
    destination = ["[[destinations]]", 'peer = "pacs"', 'commitment = "pacs"']
    with echo_scp() as port:
        write(config, tmp_path / "storage", *PEER, f"port = {port}", *destination)
        ((state, words),) = find(run, config, "commitment")
    assert (state, words.endswith("takes none of 2 presentation contexts")) == ("warning", True)

    _, output_ids = add_finished_job(database, ("pt", "rgb"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    rows = claim_outbox(database, due(), 100)
    with database.write() as connection:
        record_all_sent(connection, rows, 41.0, owes_commitment=True)
        owe_commitments(connection, "pacs", "pacs", 42.0)
    [asked] = claim_commitments(database, Turn("pacs", 43.0, 60.0, 60.0), 1)
    with database.write() as connection:
        give_commitment_up(connection, asked, "it takes no request")
    with Pacs() as pacs:
        write(config, tmp_path / "storage", *PEER, f"port = {pacs.port}", *destination)
        found = find(run, config, "commitment")
    words = "pacs was sent 2 instances and has not committed them, though asked more than once"
    assert found == [
        ("ok", "pacs takes requests for storage commitment"),
        ("warning", f"{words}; dicomnode outbox list --state sent"),
    ]
