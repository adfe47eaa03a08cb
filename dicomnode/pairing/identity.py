"""Compares who two series say their patient is.

Flow: database/series > [identity] > pairing/rules
Never: an identity in what it says: it names the attribute, never the value. A name alone never makes two people one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from dicomnode.database.index import PatientIdentity

# What modalities fill in when nobody typed a PatientID, in small letters.
PLACEHOLDER_IDS = frozenset(
    {"", "unknown", "anon", "anonymous", "anonymized", "anonymised", "none", "null", "n/a", "na", "noid", "no id"}
)
_FILLER = re.compile(r"[0x?*.\-_ ]*", re.IGNORECASE)


@dataclass(frozen=True)
class IdentityCheck:
    """Whether two series may be one patient's; `hold` is why a person must look, `warnings` what was noticed."""

    is_same: bool
    refusal: str = ""
    hold: str = ""
    warnings: tuple[str, ...] = ()


def is_placeholder_id(patient_id: str) -> bool:
    """Say whether a PatientID names nobody: empty, zeros, UNKNOWN, ANON and their like."""
    text = patient_id.strip().lower()
    return text in PLACEHOLDER_IDS or _FILLER.fullmatch(text) is not None


def compare_identities(fixed: PatientIdentity, moving: PatientIdentity, *, is_single_issuer: bool) -> IdentityCheck:
    """Compare two identities by the rules of `dicom-objects` section 9.

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
        do and a birth date is missing.
    """
    if refusal := _refuse(fixed, moving, is_single_issuer=is_single_issuer):
        return IdentityCheck(is_same=False, refusal=refusal)
    holds = [
        f"{attribute} differs between the MR and the PET"
        for attribute, one, other in (
            ("PatientBirthDate", fixed.birth_date.strip(), moving.birth_date.strip()),
            ("PatientSex", fixed.sex.strip().upper(), moving.sex.strip().upper()),
        )
        if one and other and one != other
    ]
    warnings: tuple[str, ...] = ()
    if not is_same_name(fixed.name, moving.name):
        warnings = ("PatientName differs between the MR and the PET",)
        if not (fixed.birth_date.strip() and moving.birth_date.strip()):
            holds.append("PatientName differs and a PatientBirthDate is missing")
    return IdentityCheck(is_same=True, hold="; ".join(holds), warnings=warnings)


def is_same_name(one: str, other: str) -> bool:
    """Say whether two PersonNames (PS3.5 6.2.1) can be one person's; a missing name contradicts nothing.

    Compared are family and given name of each representation both have, without case, accents and punctuation; a
    middle name, a prefix or a suffix that only one has is no difference.
    """
    of_one, of_other = _representations(one), _representations(other)
    compared = [(a, b) for a, b in zip(of_one, of_other, strict=False) if a and b]
    return not compared or any(a <= b or b <= a for a, b in compared)


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
    found = []
    for representation in name.split("="):
        family_and_given = " ".join(representation.split("^")[:2])
        letters = unicodedata.normalize("NFKD", family_and_given).casefold()
        plain = "".join(c for c in letters if not unicodedata.combining(c))
        found.append(frozenset(re.findall(r"\w+", plain)))
    return found
