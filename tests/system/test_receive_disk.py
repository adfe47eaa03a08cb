"""A node whose disk fails under it: full, read-only, gone, broken, or no descriptor left; it says so and goes on after.

Flow: a disk of the test's own > [test_receive_disk] > dicomnode serve
Never: the disk of this machine, or a failure that is only told of.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dicomnode.running import read_counts
from tests.builders import NODE_AE, CommandResult, NodeProcess, Peer, make_config, run_command
from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, free_port
from tests.raw_association import A_ASSOCIATE_AC, RawAssociation, associate_request, fragments, pdv, store_command
from tests.receiving import MR, ROOT, encode, make_data_set
from tests.waiting import wait_until

RESERVE_BYTES = 4 << 20
REJECTED_FOR_NOW = bytes((0, 2, 3, 2))  # PS3.8 table 9-21: transient, by the provider, local limit exceeded
SUCCESS, PROCESSING_FAILURE, OUT_OF_RESOURCES = 0x0000, 0x0110, 0xA700
BROKEN_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_broken(void) { return access(getenv("BROKEN_DISK"), F_OK) == 0; }

int fdatasync(int descriptor) {
    if (is_broken()) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(descriptor);
}

int fsync(int descriptor) {
    if (is_broken()) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(descriptor);
}

ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off64_t at, int flags) {
    if (is_broken() && flags) { errno = EIO; return -1; }
    return ((ssize_t (*)(int, const struct iovec *, int, off64_t, int)) dlsym(RTLD_NEXT, "pwritev64v2"))(
        descriptor, parts, count, at, flags);
}
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextmanager
def serving(folder: Path, root: Path, environment: Mapping[str, str] | None = None) -> Iterator[NodeProcess]:
    port = free_port()
    sections: dict[str, dict[str, Any]] = {
        "node": {"storage_root": str(root)},
        "limits": {"disk_reserve_bytes": RESERVE_BYTES},
    }
    node = NodeProcess(make_config(folder, [Peer("scanner", "SCANNER")], port, sections), port, ["receive"])
    node.environment |= environment or {}
    with node:
        yield node


def associate(node: NodeProcess) -> RawAssociation:
    return RawAssociation(node.port).associate(called=NODE_AE)


def store(raw: RawAssociation, number: int, size: int = 16) -> int:
    data = encode(make_data_set(number, size=size))
    command = store_command(MR, f"{ROOT}.3.{number}", number)
    raw.send_pdvs([[pdv(1, 3, command)], *[[value] for value in fragments(1, 0, data, 16000)]])
    answer = raw.read()
    assert answer is not None
    at = answer.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int.from_bytes(answer[at : at + 2], "little")


def is_refused_for_now(node: NodeProcess) -> bool:
    with RawAssociation(node.port) as raw:
        raw.send(associate_request("SCANNER", NODE_AE, [(MR, ("1.2.840.10008.1.2.1",))], 16384))
        answer = raw.read()
    return answer is not None and answer[:1] == b"\x03" and answer[6:] == REJECTED_FOR_NOW


def is_let_in(node: NodeProcess) -> bool:
    with RawAssociation(node.port) as raw:
        raw.send(associate_request("SCANNER", NODE_AE, [(MR, ("1.2.840.10008.1.2.1",))], 16384))
        answer = raw.read()
    return answer is not None and answer[0] == A_ASSOCIATE_AC


def read_log(node: NodeProcess) -> str:
    return node.log.read_text(encoding="utf-8")


def see_doctor(node: NodeProcess) -> CommandResult:
    return run_command("doctor", "--config", node.config, "--json")


def storage_problem(node: NodeProcess) -> str:
    """Return what `doctor` says of the storage, which must be a problem."""
    seen = see_doctor(node)
    (finding,) = [finding for finding in seen.json["findings"] if finding["check"] == "storage"]
    assert (seen.returncode, finding["state"]) == (2, "problem"), finding
    return str(finding["text"])


def assert_well(node: NodeProcess, number: int, raw: RawAssociation | None = None) -> None:
    """Assert that the node stores again: over an association that was open all the time, and over a new one."""
    if raw is not None:
        assert store(raw, number) == SUCCESS
    with associate(node) as new:
        assert store(new, number + 1) == SUCCESS
        new.release()
    (finding,) = [one for one in see_doctor(node).json["findings"] if one["check"] == "storage"]
    assert finding["state"] == "ok", finding


def settled_bytes(root: Path) -> int:
    """Return the bytes of what is stored, once the first instance is in its place."""
    wait_until(lambda: stored_bytes(root), 10, "the first instance to be in its place")
    return stored_bytes(root)


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.dcm"))


def test_below_the_reserve_nobody_new_is_let_in_and_who_is_there_is_told_to_wait(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, disk / "root") as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        before = settled_bytes(disk)
        filler = disk / "filler"
        found = os.statvfs(disk)
        filler.write_bytes(bytes(found.f_bavail * found.f_frsize - RESERVE_BYTES + (1 << 20)))
        assert store(raw, 2) == OUT_OF_RESOURCES
        assert is_refused_for_now(node)
        assert "bytes are free, limits.disk_reserve_bytes = 4194304 are needed" in storage_problem(node)
        assert stored_bytes(disk) == before
        wait_until(lambda: "disk_reserve" in str(read_counts(disk / "root")), 10, "the refusal to be counted")
        counts = read_counts(disk / "root")[node.pid]
        assert counts['dicomnode_receive_limit_crossings{limit="disk_reserve_bytes"}'] == 1
        filler.unlink()
        assert_well(node, 2, raw)


def test_a_disk_without_a_byte_left_keeps_nothing_half_written(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, disk / "root") as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        before = settled_bytes(disk)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(32 << 20))
        assert store(raw, 2, 512) == OUT_OF_RESOURCES
        assert is_refused_for_now(node)
        assert stored_bytes(disk) == before
        filler.unlink()
        assert_well(node, 2, raw)


def test_a_read_only_disk_is_named_and_taken_again_when_it_is_writable(tmp_path: Path, disk: Path) -> None:
    # The database has the disk open for writing, which forbids a remount: the mount is bound over, read-only.
    root = disk / "root"
    with serving(tmp_path, root) as node:
        run("mount", "--bind", str(root), str(root))
        run("mount", "-o", "remount,bind,ro", str(root))
        try:
            assert is_refused_for_now(node)
            assert f"{root}/spool: the file system is read-only" in storage_problem(node)
        finally:
            run("umount", "--lazy", str(root))  # the node may have a file open there just now
        assert_well(node, 2)


def test_a_storage_root_that_is_gone_is_not_made_anew(tmp_path: Path, disk: Path) -> None:
    root = disk / "root"
    with serving(tmp_path, root) as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        root.rename(disk / "away")
        assert store(raw, 2) == PROCESSING_FAILURE
        assert is_refused_for_now(node)
        assert "is its disk mounted" in storage_problem(node)
        assert not root.exists()
        wait_until(lambda: "node.step_failed" in read_log(node), 10, "a part to miss its files")
        (disk / "away").rename(root)
        assert_well(node, 2, raw)
        wait_until(lambda: "node.step_recovered" in read_log(node), 10, "it to have them again")
    told = [line.split(maxsplit=1)[1] for line in read_log(node).splitlines() if "node.step_failed" in line]
    assert len(told) == len(set(told)), told  # though it was tried each second


def test_who_sends_to_a_read_only_disk_is_told_of_each_instance(tmp_path: Path, disk: Path) -> None:
    root = disk / "root"
    with serving(tmp_path, root) as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        run("mount", "--bind", str(root), str(root))
        run("mount", "-o", "remount,bind,ro", str(root))
        try:
            statuses = [store(raw, number) for number in range(2, 202)]  # more than files stand ready
        finally:
            run("umount", "--lazy", str(root))  # the node may have a file open there just now
        assert set(statuses[-10:]) == {PROCESSING_FAILURE}
        assert_well(node, 300, raw)
        wanted = 3 + statuses.count(SUCCESS)  # those whose files were open already are as safe as any
        wait_until(lambda: [row["instance_count"] for row in node.list_rows("series")] == [wanted], 20, "every row")


def test_eight_senders_that_lose_the_storage_root_are_all_told_and_go_on_when_it_is_back(
    tmp_path: Path, disk: Path
) -> None:
    root = disk / "root"
    with serving(tmp_path, root) as node, ExitStack() as held, ThreadPoolExecutor(8) as threads:
        senders = [held.enter_context(associate(node)) for _ in range(8)]
        for round_ in range(3):

            def store_all(first: int) -> set[int]:
                return set(threads.map(store, senders, range(first, first + 8)))

            assert store_all(100 * round_) == {SUCCESS}
            root.rename(disk / "away")
            root.mkdir()
            assert store_all(100 * round_ + 10) == {PROCESSING_FAILURE}
            root.rmdir()
            (disk / "away").rename(root)
        assert_well(node, 1000, senders[0])


def test_a_node_whose_storage_root_is_gone_stops_in_order(tmp_path: Path, disk: Path) -> None:
    root = disk / "root"
    with serving(tmp_path, root) as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        raw.release()
        settled_bytes(disk)
        root.rename(disk / "away")
        assert node.stop() == 0
        lines = node.output().splitlines()
        assert [line for line in lines if "receive.unsettled" in line and f"{root}/spool/lock: No such file" in line]
        assert any("receive.stopped" in line for line in lines)
        assert "Traceback" not in node.output()


def test_a_disk_that_fails_to_flush_is_a_processing_failure(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim, flag = tmp_path / "broken_disk.so", tmp_path / "broken"
    source = shim.with_suffix(".c")
    source.write_text(BROKEN_DISK, encoding="ascii")
    run(str(find_peer_program("gcc")), "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl")
    environment = {"LD_PRELOAD": str(shim), "BROKEN_DISK": str(flag)}
    with serving(tmp_path, disk / "root", environment) as node, associate(node) as raw:
        assert store(raw, 1) == SUCCESS
        before = settled_bytes(disk)
        flag.touch()
        assert store(raw, 2) == PROCESSING_FAILURE
        assert stored_bytes(disk) == before
        wait_until(lambda: "0110" in str(see_doctor(node).json["counts"]), 10, "the failure to be counted")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)  # `doctor` has the same disk
        assert "cannot be written: Input/output error; instances are refused" in storage_problem(node)
        flag.unlink()
        assert_well(node, 2, raw)


def test_without_a_descriptor_the_node_goes_on_and_says_so(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, disk / "root") as node, associate(node) as raw, ExitStack() as held:
        assert store(raw, 1) == SUCCESS
        used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
        _, most = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used, most))
        assert store(raw, 2) in (SUCCESS, OUT_OF_RESOURCES)  # files that are open already may serve it
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 12, most))
        for _ in range(40):
            held.enter_context(socket.create_connection((LOOPBACK, node.port), timeout=10))
        wait_until(lambda: "receive.no_descriptor" in node.log.read_text(encoding="utf-8"), 20, "the node to say so")
        # Who has waited longest makes room for a real sender, though no descriptor was left.
        wait_until(lambda: is_let_in(node), 20, "a sender to be let in")
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (most, most))
        held.close()
        assert_well(node, 3, raw)
        assert "descriptor_starvations" in str(see_doctor(node).json["counts"])
        log = node.log.read_text(encoding="utf-8")
        assert "Traceback" not in log
