"""How many associations there may be and how often a peer may ask, by values alone."""

from __future__ import annotations

import pytest

from dicomnode.receive.load import FORGET_FROM, Load, find_due
from dicomnode.settings_limits import LimitSettings
from dicomnode.status import BusyReason


def test_a_minutes_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    due_at, let_in = 0.0, list[float]()
    for now in [1000.0] * 5 + [1000.0 + step for step in range(1, 121)]:
        following = find_due(due_at, now, 4)
        if following is not None:
            let_in.append(now)
            due_at = following
    assert let_in == [1000.0] * 4 + [1015.0 + 15 * step for step in range(8)]


@pytest.mark.parametrize("per_minute", [1, 7, 60, 3000])
def test_no_more_than_the_pace_is_let_in_for_long(per_minute: int) -> None:
    due_at, let_in = 0.0, 0
    for step in range(10 * per_minute * 3):
        following = find_due(due_at, 5000.0 + step * 20 / per_minute, per_minute)
        if following is not None:
            let_in, due_at = let_in + 1, following
    assert 10 * per_minute <= let_in <= 11 * per_minute


def test_who_leaves_makes_room() -> None:
    load, limits = Load(), LimitSettings(associations=2, associations_per_peer=1)
    assert load.enter("a", "mr", limits, 0.0) is None
    refused = load.enter("b", "mr", limits, 0.0)
    assert refused is not None
    assert (refused.limit, refused.reason) == ("associations_per_peer", BusyReason.LOCAL_LIMIT_EXCEEDED)
    load.leave("b")
    load.leave("a")
    assert load.enter("c", "mr", limits, 0.0) is None


def test_who_came_long_ago_is_forgotten_and_who_came_of_late_is_not() -> None:
    load, limits = Load(), LimitSettings(associations_per_minute=2)

    def comes_and_goes(peer: str, now: float) -> bool:
        is_let_in = load.enter(peer, peer, limits, now) is None
        load.leave(peer)
        return is_let_in

    assert all(comes_and_goes("mr", 100000.0) for _ in range(2))
    assert all(comes_and_goes(f"2001:db8::{number:x}", 100000.0 + number / 1000) for number in range(3 * FORGET_FROM))
    assert not comes_and_goes("mr", 100004.0)

    assert all(comes_and_goes(f"2001:db9::{number:x}", 200000.0 + number) for number in range(20 * FORGET_FROM))
    assert len(load._due_at) < 7 * FORGET_FROM
