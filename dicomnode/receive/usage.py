"""Counts what one association has taken, and what all of them hold in memory, against the limits.

Flow: receive.upper_layer > [usage] > settings
Never: a socket; a byte kept; a clock (the upper layer has the deadlines).
"""

from __future__ import annotations

import threading

from dicomnode.errors import LimitExceededError
from dicomnode.settings_limits import LimitSettings


class Memory:
    """The bytes of instances that are arriving or being stored, over all associations."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_bytes = 0

    def change(self, by_bytes: int) -> int:
        """Hold so many bytes more, or less, and return how many are held now."""
        with self._lock:
            self._held_bytes += by_bytes
            return self._held_bytes


class Usage:
    """What one association has taken of its limits; used in its thread alone."""

    def __init__(self, limits: LimitSettings, memory: Memory) -> None:
        self.limits = limits
        self._memory = memory
        self._held_bytes = self._taken_bytes = self._instances = 0

    def take_data(self, size_bytes: int) -> None:
        """Count the bytes of a P-DATA-TF.

        Raises
        ------
        LimitExceededError
            If the association has brought more than its bytes; or if all together hold more than `memory_bytes`, and
            this one more than its share of them, so that small instances go on.
        """
        limits = self.limits
        self._taken_bytes += size_bytes
        self._held_bytes += size_bytes
        all_bytes = self._memory.change(size_bytes)
        if self._taken_bytes > limits.association_bytes:
            raise LimitExceededError(
                "association_bytes", f"{self._taken_bytes} bytes came, at most {limits.association_bytes} are taken"
            )
        if all_bytes > limits.memory_bytes and self._held_bytes > limits.memory_bytes // limits.associations:
            raise LimitExceededError(
                "memory_bytes",
                f"instances that are arriving hold {all_bytes} bytes, {self._held_bytes} of them this one's; "
                f"at most {limits.memory_bytes} are kept in memory",
            )

    def take_instance(self) -> None:
        """Count an instance that is about to be stored.

        Raises
        ------
        LimitExceededError
            If the association has brought as many as it may.
        """
        self._instances += 1
        if self._instances > self.limits.association_instances:
            raise LimitExceededError(
                "association_instances",
                f"instance {self._instances} came, {self.limits.association_instances} are taken",
            )

    def let_go(self) -> None:
        """Count what was held as held no more."""
        self._memory.change(-self._held_bytes)
        self._held_bytes = 0
