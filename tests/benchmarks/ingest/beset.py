"""What a sender keeps of its speed while two hundred peers have begun to say something and do not go on.

Flow: run > [beset] > senders, tests.raw_association
Never: a peer that asks for nothing left out of the count of those that wait: the oldest of them are cut for newer ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack

from tests.benchmarks.ingest.scps import Scp
from tests.benchmarks.ingest.senders import Load, Sent
from tests.raw_association import P_DATA, RawAssociation

HALF = struct.pack(">BxH", P_DATA, 0)  # of a PDU header
SILENT, ASSOCIATED = 160, 40
COUNT = 320  # instances


def measure_beset(node: Scp, send: Callable[[Load], Sent], first: int, rounds: int) -> list[tuple[float, float]]:
    """Return a sender's instances/s beset and alone, in each round but the first, which warms up."""
    pairs = []
    for _ in range(rounds + 1):
        with ExitStack() as held:
            for number in range(SILENT + ASSOCIATED):
                raw = held.enter_context(RawAssociation(node.port))
                if number >= SILENT:
                    raw.associate(called=node.ae_title, calling="STORESCU")
                raw.send(HALF)
            beset_s = send(Load(node.port, node.ae_title, 1, COUNT, first)).seconds
        alone_s = send(Load(node.port, node.ae_title, 1, COUNT, first + COUNT)).seconds
        first += 2 * COUNT
        pairs.append((COUNT / beset_s, COUNT / alone_s))
    return pairs[1:]
