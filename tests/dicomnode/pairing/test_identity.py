"""Two series are one patient's by ID and issuer, never by name; conflicts are held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.database.index import PatientIdentity
from dicomnode.pairing.identity import compare_identities, is_placeholder_id, is_same_name
from tests.values import JANE

IDENTITIES = st.builds(
    PatientIdentity,
    st.sampled_from(["4711", "4712", "0"]),
    st.sampled_from(["", "A", "B"]),
    st.sampled_from(["", "Doe^Jane", "DOE^JANE^M", "Roe^Rita"]),
    st.sampled_from(["", "19700102", "19700201"]),
    st.sampled_from(["", "F", "M"]),
)


@pytest.mark.parametrize(
    "patient_id",
    [
        *("", "  ", "0", "000000", "UNKNOWN", "unknown", "Anon", "ANONYMOUS", "XXXX", "???", "-", "N/A", "None"),
        *("REMOVED", "Deidentified", "no_value", "Phantom"),
    ],
)
def test_placeholders_name_nobody(patient_id: str) -> None:
    assert is_placeholder_id(patient_id)


@pytest.mark.parametrize("patient_id", ["1", "4711", "ANON-0017", "X12", "0815", "UNKNOWN7", "TEST17", "PATIENT-3"])
def test_ids_name_somebody(patient_id: str) -> None:
    assert not is_placeholder_id(patient_id)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("Doe^Jane", "DOE^JANE", True),
        ("Doe^Jane", "Doe^Jane^Mary^Dr", True),
        ("Müller^Jörg", "MULLER^JORG", True),
        ("Doe-Smith^Jane", "DOE SMITH^JANE", True),
        ("Doe^Jane", "", True),
        ("Yamada^Tarou=山田^太郎", "YAMADA^TAROU", True),
        ("Yamada^Tarou=山田^太郎", "=山田^太郎", True),
        ("Doe^Jane", "Roe^Jane", False),
        ("Doe^Jane", "Doe^Joan", False),
    ],
)
def test_names_are_compared_without_case_accents_and_titles(one: str, other: str, is_same: bool) -> None:
    assert is_same_name(one, other) is is_same
    assert is_same_name(other, one) is is_same


@pytest.mark.parametrize(
    ("change", "is_single_issuer", "refusal"),
    [
        ({}, False, ""),
        ({"issuer": "ELSEWHERE"}, True, "IssuerOfPatientID differs"),
        ({"issuer": ""}, True, ""),
        ({"issuer": ""}, False, "IssuerOfPatientID on one side only, pairing.is_single_issuer is false"),
        ({"patient_id": "4712"}, True, "PatientID differs"),
        ({"patient_id": "UNKNOWN"}, True, "PatientID is empty or a placeholder"),
        ({"patient_id": " 4711 "}, False, ""),
    ],
)
def test_id_and_issuer_decide_who_it_is(change: dict[str, str], is_single_issuer: bool, refusal: str) -> None:
    check = compare_identities(JANE, replace(JANE, **change), is_single_issuer=is_single_issuer)

    assert (check.is_same, check.refusal) == (refusal == "", refusal)


@pytest.mark.parametrize(
    ("change", "hold", "warnings"),
    [
        ({"birth_date": "19700201"}, "PatientBirthDate differs between the MR and the PET", 0),
        ({"sex": "M"}, "PatientSex differs between the MR and the PET", 0),
        ({"birth_date": "", "sex": ""}, "", 0),
        ({"name": "Roe^Rita"}, "", 1),
        ({"name": "Roe^Rita", "birth_date": ""}, "PatientName differs and a PatientBirthDate is missing", 1),
        ({"name": "DOE^Joan"}, "PatientName differs in the given name alone, as twins' names do", 1),
        ({"name": "Doe^J"}, "", 1),
    ],
)
def test_conflicts_are_held_and_never_quote_a_value(change: dict[str, str], hold: str, warnings: int) -> None:
    check = compare_identities(JANE, replace(JANE, **change), is_single_issuer=False)

    assert (check.is_same, check.hold, len(check.warnings)) == (True, hold, warnings)


@given(IDENTITIES, IDENTITIES, st.booleans())
def test_the_comparison_is_symmetric(one: PatientIdentity, other: PatientIdentity, is_single_issuer: bool) -> None:
    there = compare_identities(one, other, is_single_issuer=is_single_issuer)

    assert compare_identities(other, one, is_single_issuer=is_single_issuer) == there
