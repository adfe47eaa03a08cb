"""Counts what happened in this process since it started.

Flow: receive > [metrics] > app > cli.serve, which shows the counts to `dicomnode doctor`
Never: patient data, or a peer's own words, in a label; a name without its unit.
"""

from __future__ import annotations

import threading
from collections import Counter

LIMIT_CROSSINGS = "dicomnode_receive_limit_crossings"  # by `limit`, a key of [limits]
PROTOCOL_ERRORS = "dicomnode_receive_protocol_errors"
REFUSED_ASSOCIATIONS = "dicomnode_receive_refused_associations"  # by `rule`, as in the log
REFUSED_CONTEXTS = "dicomnode_receive_refused_contexts"  # kept out by the settings of a peer, or by the node
ASSOCIATIONS = "dicomnode_receive_associations"  # admitted
STARVATIONS = "dicomnode_receive_descriptor_starvations"  # times that there was none for the next caller
COMMITMENT_MESSAGES = "dicomnode_receive_commitment_messages"  # by `kind` (request, report) and `status`
INSTANCES = "dicomnode_receive_instances"  # by `status`, as the sender was told


class Counts:
    """Counters by name and labels, `name{label="value"}`; any thread may count and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, **labels: str) -> None:
        """Count one more."""
        shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        with self._lock:
            self._counts[f"{name}{{{shown}}}" if shown else name] += 1

    def read(self) -> dict[str, int]:
        """Return every counter that is not zero."""
        with self._lock:
            return dict(sorted(self._counts.items()))
