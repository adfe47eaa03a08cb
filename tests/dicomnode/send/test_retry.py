"""The wait grows twofold with jitter, up to a ceiling."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.send.retry import draw_wait_s
from dicomnode.settings import SendSettings

SETTINGS = SendSettings(retry_first_s=10.0, retry_ceiling_s=3600.0)


@given(st.integers(min_value=1, max_value=10**9), st.integers(min_value=0, max_value=2**32))
def test_the_wait_is_between_half_a_step_and_the_step(failures: int, seed: int) -> None:
    step_s = min(10.0 * 2.0 ** min(failures - 1, 60), 3600.0)

    assert 0.5 * step_s <= draw_wait_s(failures, SETTINGS, np.random.default_rng(seed)) <= step_s


def test_what_failed_together_does_not_return_together() -> None:
    generator = np.random.default_rng(0)

    assert len({draw_wait_s(3, SETTINGS, generator) for _ in range(100)}) == 100
