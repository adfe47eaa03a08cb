"""`kill -9` at many moments, and power loss, under eight senders: what was acknowledged is whole and indexed again."""

from __future__ import annotations

import random
from pathlib import Path

from tests.builders import Peer, make_config
from tests.peers_programs import free_port
from tests.shims import build_shim, lose_power
from tests.system.crashing_node import CrashingNode, Senders, find_broken

SEED = 20260305
SENDERS, EACH = 8, 15  # instances of a round, all different
KILLS = 50
# After how many acknowledged instances the power goes: the last time all are in the store, and the spool was flushed.
POWER_LOSSES = (1, 30, 90, SENDERS * EACH)
FIRST = 1_000_000


def shares(number: int) -> list[range]:
    """Return the instances of each sender in a round."""
    first = FIRST + number * SENDERS * EACH
    return [range(first + sender, first + SENDERS * EACH, SENDERS) for sender in range(SENDERS)]


def test_what_was_acknowledged_survives_50_kills_under_8_senders(tmp_path: Path) -> None:
    draw = random.Random(SEED)  # noqa: S311  moments, not secrets
    port = free_port()
    root = tmp_path / "storage"
    sent: dict[str, bytes] = {}
    acknowledged: set[str] = set()
    with CrashingNode(make_config(tmp_path, [Peer("scanner", "SCANNER")], port)) as node:
        for number in range(KILLS):
            node.start()
            assert find_broken(root, sent, acknowledged) == []
            senders = Senders(port, shares(number), size=32)
            senders.wait_for(draw.randrange(SENDERS * EACH))
            node.kill()
            senders.join()
            sent |= senders.sent
            acknowledged |= senders.acknowledged
        node.start()
        assert find_broken(root, sent, acknowledged) == []
    assert len(acknowledged) < KILLS * SENDERS * EACH, "no round was cut short"
    assert len(acknowledged) > KILLS * SENDERS, "hardly anything was stored"


def test_what_was_acknowledged_survives_power_loss(tmp_path: Path) -> None:
    shim = build_shim("power_loss", tmp_path)
    for number, moment in enumerate(POWER_LOSSES):
        port = free_port()
        folder, kept = tmp_path / f"round{number}", tmp_path / f"kept{number}"
        kept.mkdir()
        config = make_config(folder, [Peer("scanner", "SCANNER")], port)
        with CrashingNode(config, {"LD_PRELOAD": str(shim), "POWER_LOSS": str(kept)}) as node:
            node.start()
            senders = Senders(port, shares(number), size=32)
            senders.wait_for(moment)
            if moment == SENDERS * EACH:
                senders.join()
            node.kill()
            senders.join()
        survived = tmp_path / f"survived{number}"
        config = make_config(survived, [Peer("scanner", "SCANNER")], port)
        (survived / "storage").rmdir()
        lose_power(kept, folder / "storage", survived / "storage")
        with CrashingNode(config) as node:
            node.start()
            assert find_broken(survived / "storage", senders.sent, senders.acknowledged) == []
