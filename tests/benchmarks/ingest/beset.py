"""What a sender keeps of its speed while two hundred peers have begun to say something and do not go on.

Flow: run > [beset] > senders, tests.raw_association
Never: a peer that was cut to make room for another, or for its time, counted: the node lets as many wait.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable
from contextlib import ExitStack

from tests.benchmarks.ingest.scps import Scp
from tests.benchmarks.ingest.senders import Load, Sent
from tests.raw_association import P_DATA, RawAssociation

HALF = struct.pack(">BxH", P_DATA, 0)  # of a PDU header
SILENT, ASSOCIATED = 160, 40
COUNT = 320  # instances


def measure_beset(
    node: Scp, send: Callable[[Load], Sent], first: int, rounds: int, count: int = COUNT
) -> list[tuple[float, float]]:
    """Return a sender's instances/s beset and alone, in each round but the first, which warms up."""
    pairs = []
    for _ in range(rounds + 1):
        with ExitStack() as held:
            besetting = [held.enter_context(RawAssociation(node.port)) for _ in range(SILENT + ASSOCIATED)]
            for raw in besetting[SILENT:]:
                raw.associate(called=node.ae_title, calling="STORESCU")
            for raw in besetting:
                raw.send(HALF)
            beset_s = send(Load(node.port, node.ae_title, 1, count, first)).seconds
            if gone := sum(bool(select.select([raw.socket], [], [], 0)[0]) for raw in besetting):
                raise RuntimeError(f"{gone} of {len(besetting)} peers were cut before the sender was through")
        alone_s = send(Load(node.port, node.ae_title, 1, count, first + count)).seconds
        first += 2 * count
        pairs.append((count / beset_s, count / alone_s))
    return pairs[1:]
