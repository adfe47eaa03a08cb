"""Says whether all of a series has arrived, and from what that was concluded.

Flow: database/series > [completeness] > pairing/service
Never: a clock, a database: the rule is a function of values. DICOM has no generic end of a series
(`dicom-objects` section 8), so a later instance opens the question again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.database.series import OpenSeries
from dicomnode.settings import PairingSettings


@dataclass(frozen=True)
class Completeness:
    """The decision and its reason, which a person reads in `series show`."""

    is_complete: bool
    reason: str


def judge_completeness(series: OpenSeries, now: float, settings: PairingSettings) -> Completeness:
    """Decide whether a series in `receiving` is complete.

    A PET says how many instances it has (NumberOfSlices x NumberOfTimeSlices, PS3.3 C.8.9.1): that count, exactly, is
    enough once the associations that brought it have ended. Anything else is complete when those associations have
    ended and nothing came for the series' quiet period; a PET that falls short of its own count is given the study's.

    Parameters
    ----------
    series : OpenSeries
        With its activity; instants in UTC epoch seconds.
    now : float
        UTC epoch seconds.
    settings : PairingSettings
        The quiet periods, s.
    """
    count, expected = series.series.instance_count, series.row.expected_instances
    if series.series.open_associations > 0:
        return Completeness(is_complete=False, reason=f"{count} instances, an association that sends it is open")
    if expected is not None and count == expected:
        return Completeness(is_complete=True, reason=f"{count} of {expected} instances, by the PET's own count")
    needed_s = settings.series_quiet_period_s
    if expected is not None and count < expected:
        needed_s = max(needed_s, settings.study_quiet_period_s)
    last_event = max(series.series.last_received_at, series.series.last_closed_at or 0.0)
    quiet_s = now - last_event
    of_expected = "" if expected is None else f" of {expected}"
    reason = f"{count}{of_expected} instances, quiet for {quiet_s:.0f} s, {needed_s:.0f} s needed"
    return Completeness(is_complete=quiet_s >= needed_s, reason=reason)
