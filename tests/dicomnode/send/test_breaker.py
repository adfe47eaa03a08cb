"""A destination that fails is left alone for a step, tried by one association, and trusted again after a success."""

from __future__ import annotations

import numpy as np

from dicomnode.send.breaker import Breaker
from dicomnode.settings import SendSettings

SETTINGS = SendSettings(retry_first_s=10.0, retry_ceiling_s=100.0)


def _breaker() -> Breaker:
    return Breaker(np.random.default_rng(0))


def test_closed_it_allows_what_is_set() -> None:
    assert _breaker().allows(1000.0, 4, SETTINGS) == 4


def test_a_failure_opens_it_and_one_association_shows_whether_the_destination_is_back() -> None:
    breaker = _breaker()

    retry_at = breaker.fail(1000.0, 0, SETTINGS)

    assert 1005.0 <= retry_at <= 1010.0
    assert breaker.allows(retry_at - 0.1, 4, SETTINGS) == 0
    assert breaker.allows(retry_at, 4, SETTINGS) == 1
    breaker.succeed()
    assert breaker.allows(retry_at, 4, SETTINGS) == 4


def test_a_second_failure_opens_it_for_longer() -> None:
    breaker = _breaker()
    breaker.fail(1000.0, 0, SETTINGS)

    assert 1110.0 <= breaker.fail(1100.0, 1, SETTINGS) <= 1120.0


def test_what_several_associations_met_at_once_is_one_failure() -> None:
    breaker = _breaker()

    instants = {breaker.fail(1000.0, 0, SETTINGS) for _ in range(4)}

    assert (len(instants), breaker.failures) == (1, 1)


def test_a_destination_that_takes_fewer_is_asked_for_fewer_until_there_is_no_more_to_send() -> None:
    breaker = _breaker()
    breaker.narrow(2)
    assert breaker.allows(1000.0, 4, SETTINGS) == 2

    breaker.widen()

    assert breaker.allows(1000.0, 4, SETTINGS) == 4


def test_a_clock_that_is_put_back_does_not_keep_it_open() -> None:
    breaker = _breaker()
    breaker.fail(1e6, 0, SETTINGS)

    assert breaker.allows(1000.0, 4, SETTINGS) == 1


def test_a_new_start_forgets() -> None:
    breaker = _breaker()
    breaker.fail(1000.0, 0, SETTINGS)

    breaker.forget()

    assert breaker.allows(1000.0, 4, SETTINGS) == 4
