"""Compares who two series say their patient is.

Flow: database/series > [identity] > pairing/rules
Never: an identity in what it says: it names the attribute, never the value. A name alone never makes two people one.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dicomnode.database.index import PatientIdentity

# What modalities fill in when nobody typed a PatientID, and de-identification for every patient; in small letters.
PLACEHOLDER_IDS = frozenset(
    {
        "", "anon", "anonymised", "anonymized", "anonymous", "blank", "de-identified", "default", "deidentified",
        "deleted", "dummy", "hidden", "masked", "missing", "n/a", "na", "no id", "no value", "no_value", "noid", "none",
        "not available", "null", "patient", "patient id", "patientid", "phantom", "redacted", "removed", "test",
        "undefined", "unidentified", "unknown",
    }
)  # fmt: skip
# What forms and de-identification fill in for a birth date: two of them are no sign of one person.
PLACEHOLDER_DATES = frozenset({"00000000", "00010101", "18000101", "19000101", "99991231"})
EQUAL, DIFFERS, ONE_SIDE, NEITHER = "equal", "differs", "on one side only", "on neither side"
_FILLER = re.compile(r"[0x?*.\-_ ]*", re.IGNORECASE)


@dataclass(frozen=True)
class IdentityCheck:
    """Whether two series may be one patient's; `hold` is why a person must look, `warnings` what was noticed.

    `agreement` says of each attribute whether both sides' values are equal, never what they are.
    """

    is_same: bool
    refusal: str = ""
    hold: str = ""
    warnings: tuple[str, ...] = ()
    agreement: Mapping[str, str] = field(default_factory=dict)


def is_placeholder_id(patient_id: str) -> bool:
    """Say whether a PatientID names nobody: empty, zeros, UNKNOWN, ANON and their like."""
    text = patient_id.strip().lower()
    return text in PLACEHOLDER_IDS or _FILLER.fullmatch(text) is not None


def compare_identities(fixed: PatientIdentity, moving: PatientIdentity, *, is_single_issuer: bool) -> IdentityCheck:
    """Compare two identities: ID and issuer decide, and what else is known may hold the pair.

    Parameters
    ----------
    fixed, moving : PatientIdentity
        As they were sent.
    is_single_issuer : bool
        Whether an empty issuer means the site's only one.

    Returns
    -------
    IdentityCheck
        Not the same for placeholder or unequal IDs or issuers; held when birth date or sex disagree, or when the names
        do and a birth date is missing, or the given name alone does: a family name may change, a twin keeps it.
    """
    agreement = _compare_values(fixed, moving)
    if refusal := _refuse(fixed, moving, is_single_issuer=is_single_issuer):
        return IdentityCheck(is_same=False, refusal=refusal, agreement=agreement)
    holds = [
        f"{attribute} differs between the MR and the PET"
        for attribute in ("PatientBirthDate", "PatientSex")
        if agreement[attribute] == DIFFERS
    ]
    warnings: tuple[str, ...] = ()
    if agreement["PatientName"] == DIFFERS:
        warnings = ("PatientName differs between the MR and the PET",)
        if agreement["PatientBirthDate"] in (ONE_SIDE, NEITHER):
            holds.append("PatientName differs and a PatientBirthDate is missing")
        elif may_be_twins(fixed.name, moving.name):
            holds.append("PatientName differs in the given name alone, as twins' names do")
    return IdentityCheck(is_same=True, hold="; ".join(holds), warnings=warnings, agreement=agreement)


def is_same_name(one: str, other: str) -> bool:
    """Say whether two PersonNames (PS3.5 6.2.1) can be one person's; a missing name contradicts nothing.

    Compared are family and given name of each representation both have, without case, accents and punctuation; a
    middle name, a prefix or a suffix that only one has is no difference.
    """
    of_one, of_other = _representations(one), _representations(other)
    compared = [(a, b) for a, b in zip(of_one, of_other, strict=False) if a and b]
    return not compared or any(a <= b or b <= a for a, b in compared)


def may_be_twins(one: str, other: str) -> bool:
    """Say whether two PersonNames have one family name and given names of which neither begins the other."""
    (family, given), (other_family, other_given) = (_find_parts(name) for name in (one, other))
    begins = given.startswith(other_given) or other_given.startswith(given)
    return family == other_family and not begins


def _find_parts(name: str) -> tuple[str, str]:
    """Family and given name of the first representation that is there, plain."""
    first = next((part for part in name.split("=") if part.strip("^ ")), "")
    family, given = [*first.split("^"), "", ""][:2]
    return " ".join(_words(family)), " ".join(_words(given))


def _compare_values(fixed: PatientIdentity, moving: PatientIdentity) -> dict[str, str]:
    """Say of each attribute how the two sides' values agree."""
    values = {
        "PatientID": (fixed.patient_id.strip(), moving.patient_id.strip()),
        "IssuerOfPatientID": (fixed.issuer.strip(), moving.issuer.strip()),
        "PatientName": (fixed.name.strip(), moving.name.strip()),
        "PatientBirthDate": (fixed.birth_date.strip(), moving.birth_date.strip()),
        "PatientSex": (fixed.sex.strip().upper(), moving.sex.strip().upper()),
    }
    agreement = {
        attribute: _compare(one, other, is_same_name if attribute == "PatientName" else operator.eq)
        for attribute, (one, other) in values.items()
    }
    if agreement["PatientBirthDate"] == EQUAL and values["PatientBirthDate"][0] in PLACEHOLDER_DATES:
        agreement["PatientBirthDate"] = NEITHER
    return agreement


def _compare(one: str, other: str, is_equal: Callable[[str, str], bool]) -> str:
    if not one or not other:
        return ONE_SIDE if one or other else NEITHER
    return EQUAL if is_equal(one, other) else DIFFERS


def _refuse(fixed: PatientIdentity, moving: PatientIdentity, *, is_single_issuer: bool) -> str:
    if is_placeholder_id(fixed.patient_id) or is_placeholder_id(moving.patient_id):
        return "PatientID is empty or a placeholder"
    if fixed.patient_id.strip() != moving.patient_id.strip():
        return "PatientID differs"
    issuers = {fixed.issuer.strip(), moving.issuer.strip()}
    if len(issuers) == 1:
        return ""
    if "" not in issuers:
        return "IssuerOfPatientID differs"
    return "" if is_single_issuer else "IssuerOfPatientID on one side only, pairing.is_single_issuer is false"


def _representations(name: str) -> list[frozenset[str]]:
    """The words of family and given name, for each of the alphabetic, ideographic and phonetic representation."""
    return [frozenset(_words(" ".join(one.split("^")[:2]))) for one in name.split("=")]


def _words(text: str) -> list[str]:
    """The words of a name without case, accents and punctuation."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    return re.findall(r"\w+", "".join(c for c in letters if not unicodedata.combining(c)))
