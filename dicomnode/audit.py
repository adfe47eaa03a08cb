"""Says what happened as audit messages of PS3.15 A.5, XML in the schema of A.5.1.2.

Flow: app, receive, send > [audit] > database/audit
Never: a patient's identity: a patient is the number of a row that only this node knows, until `name_patients` is asked
to put the PatientID there; XML pasted together; a control character, whoever sent it.
"""

from __future__ import annotations

import base64
import ipaddress
import pwd
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

TEXT_MAX_CHARACTERS = 400  # of what somebody else wrote; PS3.15 A.6 wants 32768 octets taken for a message


@dataclass(frozen=True)
class Code:
    """A coded value; `system` is DCM where the standard has it (PS3.16 CID 400 to 404)."""

    value: str
    meaning: str
    system: str = "DCM"


# PS3.16 CID 400.
APPLICATION_ACTIVITY = Code("110100", "Application Activity")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
QUERY = Code("110112", "Query")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")
# PS3.16 CID 401.
STARTED, STOPPED = Code("110120", "Application Start"), Code("110121", "Application Stop")
LOGIN = Code("110122", "Login")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
SECURITY_CONFIGURATION = Code("110129", "Security Configuration")
SOFTWARE_CONFIGURATION = Code("110131", "Software Configuration")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
RECORDING_STOPPED = Code("110133", "Audit Recording Stopped")
# PS3.16 CID 402.
APPLICATION, LAUNCHER = Code("110150", "Application"), Code("110151", "Application Launcher")
DESTINATION, SOURCE = Code("110152", "Destination Role ID"), Code("110153", "Source Role ID")
# PS3.16 CID 404, and PS3.15 A.5.1.2.4; ours is none of the standard's, so that nobody takes it for a PatientID.
STUDY_UID, SOP_CLASS_UID = Code("110180", "Study Instance UID"), Code("110181", "SOP Class UID")
NODE_ID = Code("110182", "Node ID")
PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")
PATIENT_ROW = Code("patients.id", "Number of the patient at this node", "99DICOMNODE")

Outcome = Literal["0", "4", "8"]  # success, minor failure, serious failure
PERSON, SYSTEM_OBJECT = "1", "2"  # ParticipantObjectTypeCode
PATIENT, REPORT, SECURITY_RESOURCE = "1", "3", "13"  # ParticipantObjectTypeCodeRole
APPLICATION_SERVER = "4"  # AuditSourceTypeCode


@dataclass(frozen=True)
class Party:
    """Who took part: a process by its AE title, and where it is; empty where that is not known."""

    ae_title: str
    address: str = ""


@dataclass(frozen=True)
class Transfer:
    """Instances of one study that went from one AE to another; `sop_classes` holds how many of each, by UID."""

    sender: Party
    receiver: Party
    study_uid: str
    patient_row: int
    sop_classes: Mapping[str, int]
    at: float  # UTC epoch seconds


@dataclass(frozen=True)
class Question:
    """A C-FIND: its Identifier without anything that identifies a patient, encoded in this transfer syntax."""

    peer: Party
    sop_class_uid: str
    identifier: bytes
    transfer_syntax_uid: str
    patient_row: int
    is_answered: bool
    at: float  # UTC epoch seconds


@dataclass(frozen=True)
class Alert:
    """Something that somebody who watches over security should see; `count` times since it was last said."""

    type: Code
    description: str
    outcome: Outcome
    at: float  # UTC epoch seconds
    caller: Party | None = None
    count: int = 1


def find_node(ae_title: str) -> Party:
    """Return this node as it takes part in what happens: under its AE title, on this machine."""
    return Party(ae_title, socket.gethostname())


def name_user(user_id: int) -> str:
    """Return the name of a user of this machine, or the number of one that it does not know."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


def make_application_activity(node: Party, process_id: int, user: str, type_: Code, at: float) -> str:
    """Say that the node has started or stopped (PS3.15 A.5.3.1); `user` is whose process it is."""
    message = _make_message(APPLICATION_ACTIVITY, "E", "0", at, type_)
    application = _add_participant(message, str(process_id), APPLICATION, is_requestor=False, address=node.address)
    application.set("AlternativeUserID", f"AETITLES={_clean(node.ae_title)}")
    _add_participant(message, user, LAUNCHER, is_requestor=True)
    return _finish(message, node)


def make_login(node: Party, process_id: int, user: str, purpose: str, at: float) -> str:
    """Say that a user of this machine came to decide something at the command line (PS3.15 A.5.3.12), and what."""
    message = _make_message(USER_AUTHENTICATION, "E", "0", at, LOGIN)
    ET.SubElement(message[0], "EventOutcomeDescription").text = _clean(purpose)
    _add_participant(message, user, None, is_requestor=True, address=node.address)
    program = _add_participant(message, str(process_id), None, is_requestor=False, address=node.address)
    program.set("AlternativeUserID", f"AETITLES={_clean(node.ae_title)}")
    return _finish(message, node)


def make_transferred(node: Party, transfer: Transfer) -> str:
    """Say that instances were transferred (PS3.15 A.5.3.7)."""
    message = _make_message(INSTANCES_TRANSFERRED, "C", "0", transfer.at)
    _add_ae(message, transfer.sender, SOURCE, is_requestor=True)
    _add_ae(message, transfer.receiver, DESTINATION, is_requestor=False)
    return _finish(message, node, _study(transfer.study_uid, transfer.sop_classes), _patient(transfer.patient_row))


def make_study_deleted(
    node: Party, study_uid: str, patient_row: int, sop_classes: Mapping[str, int], reason: str, at: float
) -> str:
    """Say that instances of a study were deleted here (PS3.15 A.5.3.5), and by which rule."""
    message = _make_message(STUDY_DELETED, "D", "0", at)
    _add_ae(message, node, None, is_requestor=True)
    ET.SubElement(message[0], "EventOutcomeDescription").text = _clean(reason)
    return _finish(message, node, _study(study_uid, sop_classes), _patient(patient_row))


def make_query(node: Party, question: Question) -> str:
    """Say that a peer was asked (PS3.15 A.5.3.10)."""
    message = _make_message(QUERY, "E", "0" if question.is_answered else "4", question.at)
    _add_ae(message, node, SOURCE, is_requestor=True)
    _add_ae(message, question.peer, DESTINATION, is_requestor=False)
    asked = _make_object(question.sop_class_uid, SOP_CLASS_UID, SYSTEM_OBJECT, REPORT)
    ET.SubElement(asked, "ParticipantObjectQuery").text = base64.b64encode(question.identifier).decode("ascii")
    _add_detail(asked, "TransferSyntax", question.transfer_syntax_uid)
    return _finish(message, node, asked, _patient(question.patient_row))


def make_alert(node: Party, alert: Alert) -> str:
    """Say what bears on security (PS3.15 A.5.3.11)."""
    message = _make_message(SECURITY_ALERT, "E", alert.outcome, alert.at, alert.type)
    _add_ae(message, node, None, is_requestor=True)
    if alert.caller is not None:
        _add_ae(message, alert.caller, None, is_requestor=False)
    subject = _make_object(node.ae_title, NODE_ID, SYSTEM_OBJECT, SECURITY_RESOURCE)
    ET.SubElement(subject, "ParticipantObjectName").text = _clean(node.ae_title)
    _add_detail(subject, "Alert Description", _clean(alert.description))
    _add_detail(subject, "Count", str(alert.count))
    return _finish(message, node, subject)


def name_patients(text: str, patient_ids: Mapping[int, str]) -> str:
    """Put PatientIDs in the place of the node's own numbers; a number that is not given stays one."""
    message = ET.fromstring(text)  # noqa: S314 - written by `_finish`
    for one, code in _find_patients(message):
        patient_id = patient_ids.get(int(one.get("ParticipantObjectID", "")))
        if patient_id:
            one.set("ParticipantObjectID", _clean(patient_id))
            _set_code(code, PATIENT_NUMBER)
    return _write(message)


def find_patient_rows(text: str) -> set[int]:
    """Return the numbers of the patients that a message is about."""
    message = ET.fromstring(text)  # noqa: S314 - written by `_finish`
    return {int(one.get("ParticipantObjectID", "")) for one, _ in _find_patients(message)}


def is_success(text: str) -> bool:
    """Tell whether a message says that all went well."""
    event = ET.fromstring(text).find("EventIdentification")  # noqa: S314 - written by `_finish`
    return event is not None and event.get("EventOutcomeIndicator") == "0"


def _find_patients(message: ET.Element) -> Iterator[tuple[ET.Element, ET.Element]]:
    """Yield each object that is a patient by the node's own number, and the code that says so."""
    for one in message.iterfind("ParticipantObjectIdentification"):
        code = one.find("ParticipantObjectIDTypeCode")
        if code is not None and code.get("csd-code") == PATIENT_ROW.value:
            yield one, code


def _make_message(event: Code, action: str, outcome: str, at: float, type_: Code | None = None) -> ET.Element:
    message = ET.Element("AuditMessage")
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    identification = ET.SubElement(
        message,
        "EventIdentification",
        {"EventActionCode": action, "EventDateTime": when, "EventOutcomeIndicator": outcome},
    )
    _add_code(identification, "EventID", event)
    if type_ is not None:
        _add_code(identification, "EventTypeCode", type_)
    return message


def _add_ae(message: ET.Element, party: Party, role: Code | None, *, is_requestor: bool) -> None:
    title = party.ae_title or "unknown"
    participant = _add_participant(message, title, role, is_requestor=is_requestor, address=party.address)
    participant.set("AlternativeUserID", f"AETITLES={_clean(title)}")


def _add_participant(
    message: ET.Element, user: str, role: Code | None, *, is_requestor: bool, address: str = ""
) -> ET.Element:
    attributes = {"UserID": _clean(user), "UserIsRequestor": "true" if is_requestor else "false"}
    if address:
        attributes |= {"NetworkAccessPointID": _clean(address), "NetworkAccessPointTypeCode": _kind_of(address)}
    participant = ET.SubElement(message, "ActiveParticipant", attributes)
    if role is not None:
        _add_code(participant, "RoleIDCode", role)
    return participant


def _kind_of(address: str) -> str:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "1"  # a machine's name
    return "2"


def _make_object(identifier: str, code: Code, type_code: str, role: str) -> ET.Element:
    made = ET.Element(
        "ParticipantObjectIdentification",
        {
            "ParticipantObjectID": _clean(identifier),
            "ParticipantObjectTypeCode": type_code,
            "ParticipantObjectTypeCodeRole": role,
        },
    )
    _add_code(made, "ParticipantObjectIDTypeCode", code)
    return made


def _study(study_uid: str, sop_classes: Mapping[str, int]) -> ET.Element:
    study = _make_object(study_uid, STUDY_UID, SYSTEM_OBJECT, REPORT)
    ET.SubElement(study, "ParticipantObjectName").text = "study"  # the schema wants a name or a query
    description = ET.SubElement(study, "ParticipantObjectDescription")
    for uid, count in sorted(sop_classes.items()):
        ET.SubElement(description, "SOPClass", {"UID": _clean(uid), "NumberOfInstances": str(count)})
    return study


def _patient(row: int) -> ET.Element:
    patient = _make_object(str(row), PATIENT_ROW, PERSON, PATIENT)
    ET.SubElement(patient, "ParticipantObjectName").text = "patient"
    return patient


def _add_detail(element: ET.Element, type_: str, value: str) -> None:
    encoded = base64.b64encode(value.encode("utf-8")).decode("ascii")
    ET.SubElement(element, "ParticipantObjectDetail", {"type": type_, "value": encoded})


def _add_code(element: ET.Element, name: str, code: Code) -> None:
    _set_code(ET.SubElement(element, name), code)


def _set_code(element: ET.Element, code: Code) -> None:
    element.set("csd-code", code.value)
    element.set("codeSystemName", code.system)
    element.set("displayName", code.meaning)
    element.set("originalText", code.meaning)


def _finish(message: ET.Element, node: Party, *objects: ET.Element) -> str:
    source = ET.SubElement(message, "AuditSourceIdentification", {"AuditSourceID": _clean(node.ae_title)})
    ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})
    message.extend(objects)
    return _write(message)


def _write(message: ET.Element) -> str:
    """Return XML in ASCII on one line: whatever else stands in it is a character reference."""
    encoded: bytes = ET.tostring(message, encoding="us-ascii")
    return encoded.decode("ascii")


def _clean(text: str) -> str:
    """Show control characters, and whatever XML cannot hold, as escapes, and cut what is long."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:TEXT_MAX_CHARACTERS])
    return shown[:TEXT_MAX_CHARACTERS]
