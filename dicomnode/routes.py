"""Which results go to which destination: the rules of the settings, applied to one pair.

Flow: jobs/pipeline, pairing/decisions > [routes] > database/outbox; cli explains
Never: an expression that is evaluated: a rule compares titles, words and a verdict, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import Connection

from dicomnode.database.outbox import add_outbox_rows
from dicomnode.database.pairs import fetch_pair
from dicomnode.database.series import SeriesRow, fetch_series_by_id
from dicomnode.setting_values import OutputObject
from dicomnode.settings import RuleSettings, Settings


@dataclass(frozen=True)
class Facts:
    """What rules look at; a series that is not known yet is None."""

    mr: SeriesRow | None
    pet: SeriesRow | None
    verdict: str  # "accept", or "review" for what a person accepted


@dataclass(frozen=True)
class Route:
    """A destination, and the kinds of objects it is sent: those that it takes, of what a rule names."""

    destination: str
    objects: frozenset[str]


@dataclass(frozen=True)
class Trace:
    """Whether a rule applies, and why."""

    rule: str
    applies: bool
    why: str
    routes: tuple[Route, ...]


def find_routes(facts: Facts, settings: Settings) -> list[Route]:
    """Return where the results of a pair go: by every rule that applies, or to every destination where there is none.

    A destination that several rules name is sent what any of them says.
    """
    found: dict[str, frozenset[str]] = {}
    for trace in trace_rules(facts, settings):
        for route in trace.routes:
            found[route.destination] = found.get(route.destination, frozenset()) | route.objects
    return [Route(destination, objects) for destination, objects in found.items()]


def trace_rules(facts: Facts, settings: Settings) -> list[Trace]:
    """Say of each rule whether it applies to a pair, and why."""
    if not settings.rules:
        routes = _find_routes(settings, [destination.peer for destination in settings.destinations], ())
        return [Trace("", True, "there are no [[rules]]: every destination is sent all that it takes", routes)]
    return [_trace(rule, facts, settings) for rule in settings.rules]


def owe_results(
    connection: Connection,
    pair_id: int,
    verdict: str,
    made: Iterable[tuple[int, str]],
    where_and_when: tuple[Settings, float],
) -> int:
    """Owe what was made of a pair, each an output's id and kind, to whom the rules say; return how many rows.

    Parameters
    ----------
    connection : Connection
        Of `Database.write`.
    pair_id : int
    verdict : str
        "accept", or "review" for what a person accepted or `outputs.review` sends all the same.
    made : iterable of (int, str)
    where_and_when : (Settings, float)
        What holds the rules, and the time in UTC epoch seconds.
    """
    settings, now = where_and_when
    outputs = list(made)
    pair = fetch_pair(connection, pair_id)
    mr, pet = (fetch_series_by_id(connection, key).row for key in (pair.fixed_series_id, pair.moving_series_id))
    owed = 0
    for route in find_routes(Facts(mr, pet, verdict), settings):
        keys = [key for key, kind in outputs if kind in route.objects]
        owed += add_outbox_rows(connection, keys, [route.destination], now)
    return owed


def _find_routes(settings: Settings, names: Sequence[str], objects: Sequence[str]) -> tuple[Route, ...]:
    """Return a route to each destination named, for the kinds given, or for every kind where none is."""
    kinds = objects or get_args(OutputObject)
    return tuple(
        Route(destination.peer, frozenset(kind for kind in kinds if destination.takes(kind)))
        for destination in settings.destinations
        if destination.peer in names
    )


def _trace(rule: RuleSettings, facts: Facts, settings: Settings) -> Trace:
    judged = [judge(rule, facts) for name, judge in CONDITIONS.items() if getattr(rule, name)]
    failed = [why for matches, why in judged if not matches]
    if failed:
        return Trace(rule.name, False, "; ".join(failed), ())
    routes = _find_routes(settings, rule.destinations, rule.objects)
    return Trace(rule.name, True, "; ".join(why for _, why in judged) or "it asks for nothing", routes)


def _judge_sender(role: str, wanted: Sequence[str], series: SeriesRow | None) -> tuple[bool, str]:
    if series is None:
        return False, f"the {role} is not known yet"
    found = f"the {role} came from {series.calling_ae!a}"
    matches = series.calling_ae in wanted
    return matches, found if matches else f"{found}, {' or '.join(wanted)} is needed"


def _judge_description(rule: RuleSettings, facts: Facts) -> tuple[bool, str]:
    for role, series in (("MR", facts.mr), ("PET", facts.pet)):
        if series is not None and re.search(rule.description, series.description, re.IGNORECASE):
            return True, f"the {role} is described as {series.description!a}"
    known = [series.description for series in (facts.mr, facts.pet) if series is not None]
    found = " and ".join(f"{description!a}" for description in known)
    return False, f"the descriptions are {found}, {rule.description!a} is found in neither"


def _judge_verdict(rule: RuleSettings, facts: Facts) -> tuple[bool, str]:
    matches = facts.verdict == rule.verdict
    return matches, f"the verdict is {facts.verdict}" + ("" if matches else f", {rule.verdict} is needed")


# By the key of a rule: how it is judged, where it is not empty.
CONDITIONS: Mapping[str, Callable[[RuleSettings, Facts], tuple[bool, str]]] = {
    "mr_from": lambda rule, facts: _judge_sender("MR", rule.mr_from, facts.mr),
    "pet_from": lambda rule, facts: _judge_sender("PET", rule.pet_from, facts.pet),
    "description": _judge_description,
    "verdict": _judge_verdict,
}
