"""Counters: by name and labels, from many threads."""

from __future__ import annotations

import threading

from dicomnode.metrics import Counts


def test_counts_are_told_by_name_and_labels() -> None:
    counts = Counts()
    counts.add("dicomnode_receive_associations")
    counts.add("dicomnode_receive_instances", status="0000")
    counts.add("dicomnode_receive_instances", status="A700")
    counts.add("dicomnode_receive_instances", status="0000")
    assert counts.read() == {
        "dicomnode_receive_associations": 1,
        'dicomnode_receive_instances{status="0000"}': 2,
        'dicomnode_receive_instances{status="A700"}': 1,
    }


def test_no_count_is_lost_between_threads() -> None:
    counts = Counts()

    def add() -> None:
        for _ in range(2000):
            counts.add("x")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.read() == {"x": 16000}
