"""The tables of the DICOM conformance statement say what the code does.

Flow: docs/conformance.md > [test_conformance] > receive, send, outputs, settings
Never: a judgement of its prose.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode import audit
from dicomnode.commitment import PUSH_MODEL
from dicomnode.errors import DicomnodeError
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.outputs.compression import COMPRESSED, SYNTAXES
from dicomnode.outputs.modules import PLANS
from dicomnode.outputs.objects import make_outputs
from dicomnode.outputs.quantity import GE_REFERENCE_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR
from dicomnode.receive.contexts import VERIFICATION, make_contexts
from dicomnode.send.commitment import COMMITMENT_CONTEXTS
from dicomnode.send.fetch import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from dicomnode.send.find import STUDY_ROOT_FIND
from dicomnode.send.statuses import COMMITMENT_STATUSES, FAILURE_REASONS, QUERY_STATUSES, STATUSES
from dicomnode.settings import OutputSettings, Settings
from dicomnode.status import AcseReason, BusyReason, CommitmentStatus, FailureReason, RejectReason, StoreStatus
from tests.dicomnode.outputs.known_inputs import INPUTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
NEXT = {"sent": "sent", "transient": "tried again", "permanent": "given up"}
NEXT_QUESTION = {"answered": "answered", "transient": "asked again", "permanent": "given up"}
NEXT_REQUEST = {"taken": "taken", "transient": "asked again", "permanent": "given up"}
ASKED = {STUDY_ROOT_FIND, STUDY_ROOT_MOVE, STUDY_ROOT_GET, *(uid for uid, _ in COMMITMENT_CONTEXTS)}


def read_table(heading: str, first_column: str) -> list[list[str]]:
    """Return the rows of the table below a heading whose first column has this name."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    assert below, heading
    level = len(heading) - len(heading.lstrip("#"))
    section = re.split(rf"\n#{{1,{level}}} ", below)[0]
    blocks = [block.strip().splitlines() for block in section.split("\n\n") if block.strip().startswith("|")]
    for block in blocks:
        rows = [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in block]
        if rows[0][0] == first_column:
            return rows[2:]
    raise AssertionError(f"{heading}: no table with the column {first_column}")


@cache
def make_all() -> dict[str, list[pydicom.Dataset]]:
    """Make the first instance of each kind from every input."""
    made: dict[str, list[pydicom.Dataset]] = {}
    for asked in INPUTS.values():
        for kind, instance in make_outputs(asked.request()):
            if instance.InstanceNumber == 1:
                made.setdefault(kind, []).append(instance)
    return made


def test_sop_classes_and_roles() -> None:
    rows = {uid: (name, scu, scp) for name, uid, scu, scp in read_table("## 1. Overview", "SOP class")}
    sent = {str(plan.sop_class_uid) for plan in PLANS.values()}
    taken = {str(context.abstract_syntax) for context in make_contexts()}
    assert set(rows) == sent | taken | ASKED
    for uid, (name, scu, scp) in rows.items():
        assert UID(uid).name.removesuffix(" SOP Class") == name
        assert (scu == "yes") == (uid in sent | ASKED | {VERIFICATION}), name
        assert (scp == "yes") == (uid in taken), name


def test_associations() -> None:
    rows = dict(read_table("### 2.2 Associations", "what"))
    settings = Settings()
    assert rows["Implementation class UID"] == IMPLEMENTATION_CLASS_UID
    assert rows["Implementation version name"] == IMPLEMENTATION_VERSION_NAME
    assert rows["Associations accepted at one time, by default"] == str(settings.limits.associations)
    assert rows["Longest PDU accepted, bytes, by default"] == str(settings.limits.pdu_bytes)
    assert rows["Idle time before an association is ended, s, by default"] == f"{settings.limits.idle_s:g}"
    assert rows["Time for an answer of a destination, s, by default"] == f"{settings.send.timeout_s:g}"
    reasons = read_table("### 2.2 Associations", "A-ASSOCIATE-RJ by the service user")
    assert [int(code) for _, code in reasons] == list(RejectReason)
    reasons = read_table("### 2.2 Associations", "A-ASSOCIATE-RJ by the service provider (ACSE)")
    assert [int(code) for _, code in reasons] == list(AcseReason)
    reasons = read_table("### 2.2 Associations", "A-ASSOCIATE-RJ for now, by the service provider")
    assert [int(code) for _, code in reasons] == list(BusyReason)


def test_transfer_syntaxes() -> None:
    rows = read_table("### 2.3 Presentation contexts accepted", "transfer syntax")
    assert all(UID(uid).name == name for name, uid in rows)
    for context in make_contexts():
        if context.abstract_syntax in (VERIFICATION, PUSH_MODEL):
            assert set(context.transfer_syntax) == {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
        else:
            assert [uid for _, uid in rows] == context.transfer_syntax
    proposed: dict[Any, list[str]] = {
        row[0]: row[1:] for row in read_table("### 2.4 Presentation contexts proposed", "compression")
    }
    assert set(proposed) == set(COMPRESSED)
    assert proposed.pop("none")[1:] == [str(ExplicitVRLittleEndian), "all"]
    for compression, (name, uid, kinds) in proposed.items():
        assert (name, uid) == (SYNTAXES[compression].name, SYNTAXES[compression])
        assert set(kinds.replace("`", "").split(", ")) == COMPRESSED[compression]
    assert {str(instance.file_meta.TransferSyntaxUID) for made in make_all().values() for instance in made} == {
        str(ExplicitVRLittleEndian)
    }


def test_statuses_that_are_answered() -> None:
    rows = read_table("### 2.5 Storage as SCP", "status")
    assert [int(code, 16) for code, *_ in rows] == list(StoreStatus)
    names = {code: meaning.upper().replace(" ", "_") for code, meaning, _ in rows}
    assert [names[f"{status:04X}"] for status in StoreStatus] == [status.name for status in StoreStatus]
    errors = DicomnodeError.__subclasses__()
    while errors:
        error = errors.pop()
        assert f"{error.store_status:04X}" in names
        errors += error.__subclasses__()


def test_statuses_that_are_understood() -> None:
    rows = read_table("### 2.6 Storage as SCU", "status of the answer")
    assert rows == [spell(first, last, NEXT[meaning], name) for first, last, meaning, name in STATUSES]
    rows = read_table("### 2.7 Query/Retrieve as SCU", "last status")
    assert rows == [spell(first, last, NEXT_QUESTION[meaning], name) for first, last, meaning, name in QUERY_STATUSES]


def test_storage_commitment() -> None:
    heading = "### 2.8 Storage commitment as SCU"
    rows = read_table(heading, "status of the answer to N-ACTION, and to our N-EVENT-REPORT")
    assert rows == [
        spell(first, last, NEXT_REQUEST[meaning], name) for first, last, meaning, name in COMMITMENT_STATUSES
    ]
    rows = read_table(heading, "Failure Reason")
    assert rows == [spell(reason, reason, meaning, name) for reason, meaning, name in FAILURE_REASONS]
    heading = "### 2.9 Storage commitment as SCP"
    for column, kind in (("status", CommitmentStatus), ("Failure Reason we report", FailureReason)):
        rows = read_table(heading, column)
        assert [(int(code, 16), name.upper().replace(" ", "_")) for code, name, _ in rows] == [
            (int(one), one.name) for one in kind
        ]


def spell(first: int, last: int, what: str, name: str) -> list[str]:
    code = f"{first:04X}" if first == last else f"{first:04X} to {last:04X}"
    return [code, f"{what}: {name}" if name else what]


def test_configuration() -> None:
    settings = Settings()
    for key, default, _ in read_table("### 2.10 Configuration", "key"):
        section, name = key.split(".")
        value: Any = getattr(getattr(settings, section), name)
        assert json.loads(default) == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("kind", list(PLANS))
def test_modules_are_those_of_the_standard_and_hold_every_attribute_written(kind: str) -> None:
    made = make_all()[kind]
    iod = get_sop_class_iod_map()[made[0].SOPClassUID]
    name = f"#### `{kind}`: {PLANS[kind].sop_class_uid.name.removesuffix(' Storage')}"  # type: ignore[index]  # a kind
    usages = {module["key"]: module["usage"] for module in get_iod_module_map()[iod]}
    written = {element.keyword for instance in made for element in instance if not element.tag.is_private}
    explained = set()
    rows = read_table(name, "module")
    for module, usage, _ in rows:
        assert usages[module] == usage, module
        attributes = {item["keyword"] for item in get_module_attribute_map()[module] if not item["path"]}
        assert attributes & written, f"{module}: nothing of it is written"
        explained |= attributes
    assert written <= explained
    # Attributes of General Acquisition are all of type 3: it may be there without any.
    missing = {module for module, usage in usages.items() if usage == "M"} - {module for module, *_ in rows}
    assert missing <= {"general-acquisition"}


def test_values_that_are_always_the_same() -> None:
    rows = read_table("### 5.2 Values that are always the same", "object")
    assert {kind for kind, *_ in rows} == set(PLANS)
    for kind, keyword, value in rows:
        for instance in make_all()[kind]:
            found = instance[keyword].value
            words = "\\".join(found) if not isinstance(found, str | int | float) else str(found)
            assert words == value, f"{kind}: {keyword}"


def test_codes() -> None:
    written = set()
    for instance in (instance for made in make_all().values() for instance in made):
        for sequence, item in walk_items(instance):
            for code in item.get("PurposeOfReferenceCodeSequence") or ():
                written.add((code.CodeValue, code.CodeMeaning, sequence))
            if sequence.endswith("CodeSequence") and item.get("CodingSchemeDesignator") == "DCM":
                written.add((item.CodeValue, item.CodeMeaning, sequence))
    written = {row for row in written if row[2] != "PurposeOfReferenceCodeSequence"}
    assert written == {tuple(row) for row in read_table("### 5.3 Codes", "code")}


def walk_items(data_set: pydicom.Dataset) -> list[tuple[str, pydicom.Dataset]]:
    """Return every item within a data set with the keyword of the sequence it is in."""
    found = []
    for element in data_set:
        if element.VR == "SQ":
            for item in element.value:
                found += [(element.keyword, item), *walk_items(item)]
    return found


def test_private_attributes() -> None:
    rows = {(attribute, creator) for attribute, creator, _ in read_table("### 5.4 Private attributes", "attribute")}
    kept = (GE_REFERENCE_TIME, PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR)
    assert rows == {(f"({group:04X},xx{element:02X})", creator) for group, creator, element, _ in kept}


def test_the_words_that_mark_a_doubt() -> None:
    assert "REGISTRATION NOT VERIFIED" in PAGE
    assert OutputSettings().review == "hold"


def test_the_audit_messages_are_those_of_the_code() -> None:
    codes = {one.value: one.meaning for one in vars(audit).values() if isinstance(one, audit.Code)}
    rows = read_table("### 4.1 Audit trail", "event")
    events = {row[1]: row[0] for row in rows}
    types = {one for row in rows for one in row[2].split(", ") if one}
    assert events == {value: meaning for value, meaning in codes.items() if "110100" <= value < "110120"}
    assert types == {value for value in codes if "110120" <= value < "110150"}
