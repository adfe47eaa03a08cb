"""Says whether all of a series has arrived, and from what that was concluded.

Flow: database/series > [completeness] > pairing/service
Never: a clock, a database: the rules are functions of values. In DICOM a series has no end, so a
later instance opens the question again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.database.series import Activity, OpenSeries
from dicomnode.settings import PairingSettings

# Of the quiet period: a source that is asked at once still counts what it is receiving itself.
ASK_AFTER = 0.5


@dataclass(frozen=True)
class Completeness:
    """The decision and its reason, which a person reads in `series show`."""

    is_complete: bool
    reason: str


def judge_completeness(series: OpenSeries, now: float, settings: PairingSettings) -> Completeness:
    """Decide whether a series in `receiving` is complete.

    Nothing is, while an association that brought some of it is open. After that it is enough that the sender asked for
    storage commitment of every instance, or that as many arrived as a count says: the PET's own (NumberOfSlices x
    NumberOfTimeSlices, PS3.3 C.8.9.1), or what the source answered (NumberOfSeriesRelatedInstances, PS3.4 C.3.4).
    Anything else is complete when nothing came for the series' quiet period, or for the study's where it falls short of
    a count.

    Parameters
    ----------
    series : OpenSeries
        With its activity; instants in UTC epoch seconds.
    now : float
        UTC epoch seconds.
    settings : PairingSettings
        The quiet periods, s.
    """
    count = series.series.instance_count
    if series.series.open_associations > 0:
        return Completeness(is_complete=False, reason=f"{count} instances, an association that sends it is open")
    if series.series.commitment_requested == count:
        reason = f"{count} instances, storage commitment was requested for all of them"
        return Completeness(is_complete=True, reason=reason)
    said, by_whom = _find_count(series)
    if said == count:
        return Completeness(is_complete=True, reason=f"{count} of {said} instances, by {by_whom}")
    if said is None or count > said:
        return _judge_quiet(f"{count} instances,", series.series, now, settings.series_quiet_period_s)
    falls_short = f"{count} of {said} instances by {by_whom}, the study"
    return _judge_quiet(falls_short, series.study, now, settings.study_quiet_period_s)


def should_ask_source(series: OpenSeries, now: float, settings: PairingSettings) -> bool:
    """Say whether the source is to be asked how many instances a series has: once after each silence."""
    last_event = _last_event(series.series)
    was_asked = series.asked_at is not None and series.asked_at >= last_event
    is_quiet = now - last_event >= ASK_AFTER * settings.series_quiet_period_s
    return series.series.open_associations == 0 and is_quiet and not was_asked


def is_of_the_future(quiet_s: float, needed_s: float) -> bool:
    """Say whether a silence began so far in the future that the clock was put back since: it is not waited for."""
    return quiet_s < -needed_s


def _judge_quiet(what: str, activity: Activity, now: float, needed_s: float) -> Completeness:
    if activity.open_associations > 0:
        return Completeness(is_complete=False, reason=f"{what} is still sent")
    quiet_s = now - _last_event(activity)
    if is_of_the_future(quiet_s, needed_s):
        return Completeness(is_complete=True, reason=f"{what} quiet since the clock was put back")
    reason = f"{what} quiet for {quiet_s:.0f} s, {needed_s:.0f} s needed"
    return Completeness(is_complete=quiet_s >= needed_s, reason=reason)


def _find_count(series: OpenSeries) -> tuple[int | None, str]:
    """Return the highest count that anybody gave, and who."""
    counts = [(series.row.expected_instances, "the PET's own count"), (series.row.source_count, "the source's count")]
    given = [(count, by_whom) for count, by_whom in counts if count is not None]
    return max(given, key=lambda one: one[0], default=(None, ""))


def _last_event(activity: Activity) -> float:
    return max(activity.last_received_at, activity.last_closed_at or 0.0)
