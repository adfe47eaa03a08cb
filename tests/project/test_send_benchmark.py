"""The send benchmark: its sums, and that each of its senders sends everything.

Flow: tests.benchmarks.send > [test_send_benchmark]
Never: a comparison; `make bench` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.benchmarks.send import make_row, open_bench

INSTANCES = 4


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    row = make_row("tuned", [(300.0, 100.0), (900.0, 900.0), (500.0, 100.0)], "storescu", 4.0)

    assert (row.value, row.peer, row.ratio) == (500.0, "storescu 100", 3.0)
    assert (row.goal, row.met) == (">= 4x", False)


@pytest.mark.parametrize("has_nagle", [False, True])
def test_every_sender_sends_everything(has_nagle: bool) -> None:
    taken: list[int] = []
    with open_bench(INSTANCES, has_nagle=has_nagle) as bench:

        def send_and_count(send: Callable[[], float]) -> float:
            seconds = send()
            taken.append(len(bench.storescp.files()))
            return seconds

        senders = (bench.send, bench.send_with_storescu, bench.send_after_outage)
        rates = bench.run([partial(send_and_count, send) for send in senders], rounds=1)

    assert taken == [INSTANCES] * 2 * len(senders)  # a round that warms up, and one that counts
    assert all(rate > 0 for rate in rates[0])
