"""Which rule applies to a pair, why, and what goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dicomnode.routes import Facts, Route, find_routes, trace_rules
from dicomnode.settings import DestinationSettings, RuleSettings, Settings
from tests.rows import settings_of
from tests.values import MR_ROW, PET_ROW

EVERY_KIND = frozenset({"reg", "pt", "rgb", "multiframe", "blending"})
FACTS = Facts(MR_ROW, PET_ROW, "accept")  # from MR1 and PET1, "t1_mprage_sag" and "Brain AC"


def _settings(*rules: RuleSettings) -> Settings:
    return settings_of(Path("/unused"), "pacs", "research", rules=rules)


def _rule(name: str = "one", destinations: tuple[str, ...] = ("research",), **values: Any) -> RuleSettings:
    return RuleSettings(name=name, destinations=destinations, **values)


def test_without_rules_every_destination_is_sent_everything() -> None:
    assert find_routes(FACTS, _settings()) == [Route("pacs", EVERY_KIND), Route("research", EVERY_KIND)]


@pytest.mark.parametrize(
    ("rules", "objects"), [((), {"pt", "reg"}), ((_rule(destinations=("pacs",), objects=("pt", "rgb")),), {"pt"})]
)
def test_a_destination_is_sent_no_more_than_it_takes(rules: tuple[RuleSettings, ...], objects: set[str]) -> None:
    takes_two = (DestinationSettings(peer="pacs", objects=("pt", "reg")),)
    settings = _settings(*rules).model_copy(update={"destinations": takes_two})

    assert find_routes(FACTS, settings) == [Route("pacs", frozenset(objects))]


@pytest.mark.parametrize(
    ("asked", "applies", "why"),
    [
        ({}, True, "it asks for nothing"),
        ({"pet_from": ("PET1", "PET2")}, True, "the PET came from 'PET1'"),
        ({"pet_from": ("PET2",)}, False, "the PET came from 'PET1', PET2 is needed"),
        ({"mr_from": ("MR1",)}, True, "the MR came from 'MR1'"),
        ({"mr_from": ("MR2", "MR3")}, False, "the MR came from 'MR1', MR2 or MR3 is needed"),
        ({"description": "^brain"}, True, "the PET is described as 'Brain AC'"),
        ({"description": "mprage"}, True, "the MR is described as 't1_mprage_sag'"),
        (
            {"description": "thorax"},
            False,
            "the descriptions are 't1_mprage_sag' and 'Brain AC', 'thorax' is found in neither",
        ),
        ({"verdict": "accept"}, True, "the verdict is accept"),
        ({"verdict": "review"}, False, "the verdict is accept, review is needed"),
        (
            {"pet_from": ("PET1",), "verdict": "review"},
            False,
            "the verdict is accept, review is needed",
        ),
    ],
)
def test_a_rule_applies_when_all_that_it_asks_for_is_met(asked: dict[str, Any], applies: bool, why: str) -> None:
    [trace] = trace_rules(FACTS, _settings(_rule(**asked)))

    assert (trace.applies, trace.why) == (applies, why)
    assert find_routes(FACTS, _settings(_rule(**asked))) == ([Route("research", EVERY_KIND)] if applies else [])


def test_a_destination_gets_what_any_of_its_rules_says() -> None:
    measured = _rule("measured", ("pacs", "research"), objects=("pt",))
    looked_at = _rule("looked at", ("pacs",), objects=("rgb",))

    routes = {route.destination: route for route in find_routes(FACTS, _settings(measured, looked_at))}

    assert routes["pacs"].objects == {"pt", "rgb"}
    assert routes["research"].objects == {"pt"}
    everything = _rule("everything", ("pacs",))
    assert find_routes(FACTS, _settings(looked_at, everything)) == [Route("pacs", EVERY_KIND)]


def test_a_series_that_is_not_known_yet_meets_nothing() -> None:
    [trace] = trace_rules(Facts(MR_ROW, None, "accept"), _settings(_rule(pet_from=("PET1",))))

    assert (trace.applies, trace.why) == (False, "the PET is not known yet")


def test_a_rule_names_destinations_that_are_there_and_a_pattern_that_is_one() -> None:
    with pytest.raises(ValueError, match=r"rules\.0\.destinations: 'elsewhere' is no destination; .*: pacs, research"):
        _settings(_rule(destinations=("elsewhere",)))
    with pytest.raises(ValueError, match=r"rules\.1\.name: the name 'one' stands twice"):
        _settings(_rule(), _rule())
    with pytest.raises(ValueError, match="a regular expression is needed, '\\(' is none"):
        _rule(description="(")
