"""Finds what needs a person and stands in no row: a disk without room, a certificate that runs out.

Flow: storage_root, tls > [conditions] > send/notices
Never: a row, a socket; a disk that was well for a moment taken as well again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from dicomnode.database.notices import Cause
from dicomnode.database.store import Store
from dicomnode.errors import ConfigurationError
from dicomnode.settings import Settings
from dicomnode.storage_root import find_storage_problem
from dicomnode.tls import find_expiring, find_invalid, read_certificates

Clock = Callable[[], float]
CERTIFICATES_EVERY_S = 3600.0


@dataclass
class Conditions:
    """What is wrong with disk and certificates, and since when: a disk that is well for a moment is not well again."""

    clock: Clock
    disk_since: float | None = None
    disk_seen_at: float = 0.0
    of_certificates: tuple[Cause, ...] = ()
    certificates_read_at: float | None = None

    def find(self, settings: Settings) -> list[Cause]:
        """Return what is wrong now."""
        now, read_at = self.clock(), self.certificates_read_at
        if read_at is None or not read_at <= now < read_at + CERTIFICATES_EVERY_S:
            self.certificates_read_at, self.of_certificates = now, tuple(_find_certificates(settings, now))
        return [*self._find_disk(settings), *self.of_certificates]

    def _find_disk(self, settings: Settings) -> Iterator[Cause]:
        now = self.clock()
        # A folder that a node has made: the root alone would not tell an unmounted disk from an empty one.
        folder = Store(settings.node.storage_root).spool_root
        if find_storage_problem(folder, settings.limits.disk_reserve_bytes) is not None:
            self.disk_seen_at = now
            self.disk_since = now if self.disk_since is None else self.disk_since
        elif not 0 <= now - self.disk_seen_at < settings.notices.window_s:
            self.disk_since = None
        if self.disk_since is not None:
            yield Cause("disk", "the storage root", self.disk_since)


def _find_certificates(settings: Settings, now: float) -> Iterator[Cause]:
    """Yield the certificates of [tls] that run out soon, or are not valid; each of both is told once."""
    with suppress(ConfigurationError):  # files that cannot be used are refused at the start and at a reload
        certificates, at = read_certificates(settings.tls), datetime.fromtimestamp(now, UTC)
        for one, _ in find_invalid(certificates, at):
            yield Cause("certificate", f"tls.{one.key} (not valid)", one.validity.not_after.timestamp())
        for one in find_expiring(certificates, at):
            yield Cause("certificate", f"tls.{one.key} (runs out)", one.validity.not_after.timestamp())
