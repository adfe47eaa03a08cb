"""Which of a peer's series is fetched for one without a partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.database.index import PatientIdentity
from dicomnode.database.priors import Prior
from dicomnode.database.series import IdentifiedSeries
from dicomnode.pairing.priors import choose_prior
from dicomnode.settings import ChoiceSettings, PairingSettings
from tests.values import JANE, mr, pet, study

SETTINGS = PairingSettings(window_days=90, prior_instances=1000)
LONELY_PET, LONELY_MR = pet(state="unpaired"), mr(state="unpaired")
COUNT_UNKNOWN = 0


def _prior(
    number: int,
    modality: str = "MR",
    *,
    peer: str = "pacs",
    patient: PatientIdentity = JANE,
    description: str = "t1_mprage",
    count: int = 176,
    **columns: Any,
) -> Prior:
    described = {"modality": modality, "description": description, "instance_count": count, "state": "found"}
    known = mr(number, patient, **{**study(number), **columns}, **described)
    return Prior(number, peer, "found", "", replace(known, row=replace(known.row, summary={})))


def _decide(
    seeker: IdentifiedSeries, found: Sequence[Prior], settings: PairingSettings = SETTINGS
) -> dict[int, tuple[str, str]]:
    return {one.prior.id: (one.state, one.reason) for one in choose_prior(seeker, found, settings)}


def test_the_only_prior_is_chosen() -> None:
    assert _decide(LONELY_PET, [_prior(1)]) == {1: ("chosen", "only candidate")}


@pytest.mark.parametrize(
    ("better", "worse", "state", "reason"),
    [
        (_prior(1, **study(1, "20260201")), _prior(2, **study(2, "20260110")), "lost", "nearest day"),
        (_prior(1), _prior(2, description="t2_tse"), "lost", "T1 weighting"),
        (_prior(1), _prior(2, count=90), "lost", "more than 100 slices"),
        (_prior(1), _prior(2, description="localizer"), "refused", "its description names a localizer"),
        (_prior(1), _prior(2, count=1001), "refused", "1001 instances, at most 1000 are fetched"),
        (_prior(1), _prior(2, "PT"), "refused", "modality PT, another is needed"),
        (_prior(1), _prior(2, "CT"), "refused", "modality CT, MR or PT needed"),
        (_prior(1), _prior(2, **study(2, "20250101")), "refused", "424 days from the PET, at most 90 allowed"),
        (_prior(1), _prior(2, patient=replace(JANE, issuer="B")), "refused", "IssuerOfPatientID differs"),
        (
            _prior(1, **study(1, "20260201")),
            _prior(2, patient=replace(JANE, sex="M")),
            "lost",
            "no conflict of identity",
        ),
        (_prior(1, peer="a"), replace(_prior(1, peer="b"), id=2), "lost", "first peer by name"),
    ],
)
def test_the_better_prior_is_chosen_by_a_named_rule(better: Prior, worse: Prior, state: str, reason: str) -> None:
    decided = _decide(LONELY_PET, [worse, better])

    assert (decided[1][0], decided[2]) == ("chosen", (state, reason))


def test_a_pet_is_chosen_for_an_mr_by_the_rules_for_pets() -> None:
    found = [_prior(1, "PT", description="FDG NAC"), _prior(2, "PT", description="FDG AC"), _prior(3)]

    assert _decide(LONELY_MR, found) == {
        1: ("lost", "attenuation corrected"),
        2: ("chosen", "best by every rule"),
        3: ("refused", "modality MR, another is needed"),
    }


def test_a_peer_that_counts_nothing_is_believed_to_have_enough() -> None:
    assert _decide(LONELY_PET, [_prior(1, count=COUNT_UNKNOWN)])[1][0] == "chosen"


def test_the_site_s_choice_goes_before_the_rules() -> None:
    choices = (ChoiceSettings(modality="MR", description="flair", take="first"),)

    decided = _decide(
        LONELY_PET, [_prior(1), _prior(2, description="t2 flair")], SETTINGS.model_copy(update={"choices": choices})
    )

    assert decided == {2: ("chosen", "best by every rule"), 1: ("lost", "chosen by pairing.choices")}


def test_nothing_is_fetched_for_a_series_that_has_a_partner_by_now() -> None:
    assert _decide(pet(state="paired"), [_prior(1)]) == {1: ("lost", "not needed: the series is paired")}


def test_what_was_chosen_or_refused_before_stays_so_and_the_next_best_is_chosen() -> None:
    before = [replace(_prior(1), state="chosen"), replace(_prior(2), state="refused"), replace(_prior(3), state="lost")]

    assert _decide(LONELY_PET, [*before, _prior(4, description="t2")]) == {
        3: ("chosen", "best by every rule"),
        4: ("lost", "T1 weighting"),
    }


def test_no_more_than_three_are_fetched() -> None:
    fetched = [replace(_prior(n), state="chosen") for n in (1, 2, 3)]

    assert _decide(LONELY_PET, [*fetched, _prior(4)]) == {4: ("lost", "3 were fetched already")}


@given(order=st.randoms())
def test_the_order_of_answers_changes_nothing(order: Random) -> None:
    found = [_prior(n, **study(n, f"202602{n:02d}"), description=("t1", "t2")[n % 2]) for n in range(1, 9)]
    shuffled = list(found)
    order.shuffle(shuffled)

    assert _decide(LONELY_PET, shuffled) == _decide(LONELY_PET, found)
