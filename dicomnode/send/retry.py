"""How long to wait before a destination, or one instance for it, is tried again.

Flow: send/service > [retry] > database/outbox
Never: a clock, a hidden source of chance: the generator is passed in.
"""

from __future__ import annotations

from numpy.random import Generator

from dicomnode.settings import SendSettings

DOUBLINGS_AT_MOST = 40
# The wait is drawn between this share of the step and the whole, so that what failed together does not return together.
JITTER_FROM = 0.5


def draw_wait_s(failures: int, settings: SendSettings, generator: Generator) -> float:
    """Draw the wait after a number of failures in a row.

    Parameters
    ----------
    failures : int
        At least 1.
    settings : SendSettings
        The first step and the ceiling, s; each failure doubles the step.
    generator : Generator
        For the jitter.

    Returns
    -------
    wait_s : float
        From half the step to the whole step, never above the ceiling.
    """
    step_s = min(settings.retry_first_s * 2.0 ** min(failures - 1, DOUBLINGS_AT_MOST), settings.retry_ceiling_s)
    return step_s * float(generator.uniform(JITTER_FROM, 1.0))
