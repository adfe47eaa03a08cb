"""Decides whether one association more may come: how many there are, and how often a peer asks for one.

Flow: receive.associations > [load] > settings
Never: who may come at all (`policy` decides that); a socket.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from dicomnode.settings_limits import LimitSettings
from dicomnode.status import BusyReason

MINUTE_S = 60.0
ROUNDING_S = 1e-6  # of sums of steps
FORGET_FROM = 1000  # peers: those that came long ago are forgotten then


@dataclass(frozen=True)
class Overload:
    """The caller is turned away for now by a key of [limits], with the words for our log."""

    reason: BusyReason
    limit: str
    message: str


class Load:
    """The associations that were admitted, each with its peer's name; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[object, str] = {}
        self._due_at: dict[str, float] = {}
        self._forget_from = FORGET_FROM  # peers

    def enter(self, association: object, peer: str, limits: LimitSettings, now: float) -> Overload | None:
        """Count an association in, or say which limit keeps it out; `now` is in monotonic seconds."""
        with self._lock:
            overload = self._judge(peer, limits, now)
            if overload is None:
                self._peers[association] = peer
        return overload

    def leave(self, association: object) -> None:
        """Count an association out, if it was counted in."""
        with self._lock:
            self._peers.pop(association, None)

    def _judge(self, peer: str, limits: LimitSettings, now: float) -> Overload | None:
        due_at = find_due(self._due_at.get(peer, 0.0), now, limits.associations_per_minute)
        if due_at is None:
            words = f"it asked more than {limits.associations_per_minute} times in a minute"
            return Overload(BusyReason.TEMPORARY_CONGESTION, "associations_per_minute", words)
        self._due_at[peer] = due_at
        if len(self._due_at) >= self._forget_from:  # whoever was due before now may come as one that never came
            self._due_at = {name: at for name, at in self._due_at.items() if at > now}
            self._forget_from = max(2 * len(self._due_at), FORGET_FROM)
        counts = {
            "associations": (len(self._peers), limits.associations),
            "associations_per_peer": (list(self._peers.values()).count(peer), limits.associations_per_peer),
        }
        for limit, (count, most) in counts.items():
            if count >= most:
                return Overload(
                    BusyReason.LOCAL_LIMIT_EXCEEDED, limit, f"limits.{limit} is reached: {count} of {most} are open"
                )
        return None


def find_due(due_at: float, now: float, per_minute: int) -> float | None:
    """Return when the next request is due if this one is in pace, None if it is not.

    Parameters
    ----------
    due_at, now : float, s
        When this one was due at an even pace, and when it came; one may come up to a minute early, so that a minute's
        worth may come at once.

    Sources
    -------
    The generic cell rate algorithm, ITU-T I.371 5.4.1 (virtual scheduling).
    """
    step_s = MINUTE_S / per_minute
    if due_at - now > MINUTE_S - step_s + ROUNDING_S:
        return None
    return max(due_at, now) + step_s
