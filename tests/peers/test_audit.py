"""The audit trail fits the standard's schema, and reaches rsyslog by TLS and UDP and a file: all of it, in order.

Flow: dicomnode.audit, dicomnode.send.audit > [test_audit] > rsyslogd, xmllint, openssl
Never: a collector beyond loopback.
"""

from __future__ import annotations

import base64
import os
import socket
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from numpy.random import default_rng
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dsutils import decode

from dicomnode.audit import (
    NODE_AUTHENTICATION,
    RECORDING_STOPPED,
    STARTED,
    STOPPED,
    Alert,
    Party,
    Question,
    Transfer,
    make_alert,
    make_application_activity,
    make_login,
    make_query,
    make_study_deleted,
    make_transferred,
    name_patients,
)
from dicomnode.database.audit import AuditMessage, fetch_channel_states, fetch_messages, record_message
from dicomnode.database.engine import Database
from dicomnode.database.index import close_association
from dicomnode.database.outbox import add_outbox_rows, claim_outbox, record_all_sent
from dicomnode.database.queries import Kind, add_query, fetch_queries
from dicomnode.database.series import fetch_series
from dicomnode.errors import PeerUnreachableError, StorageFailedError
from dicomnode.send.audit import AuditTrail
from dicomnode.send.collectors import append, make_collectors
from dicomnode.send.queries import QueryService
from dicomnode.settings import NodeSettings, PeerSettings, SendSettings, Settings
from dicomnode.settings_reporting import AuditSettings
from dicomnode.tls import make_server_context
from tests.audit_collectors import Rsyslog, details_of, event_of, find_schema_errors
from tests.certificates import Authority
from tests.clocks import Clock
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, DcmQrScp, free_port
from tests.rows import MR, PATIENT, PET, PET_CLASS, add_finished_job, due, receive
from tests.waiting import wait_until

NODE = Party("DICOMNODE", "fusion.example.org")
SCANNER = Party("SCANNER", "10.1.2.3")
HOSTILE = '<img src=x>&"\x1b[31m\x00\ud800\ufffe\U0001f4a9é' + "A" * 10000
CLASSES = {"1.2.840.10008.5.1.4.1.1.4": 176}
NOW = 1700000000.0
WAIT_S = 30.0


def _texts(words: str = "a word") -> list[str]:
    """Return a message of every kind that there is; each with these words where somebody else may have a say."""
    party = Party(words, words)
    asked = Question(party, "1.2.840.10008.5.1.4.1.2.2.1", b"\x08\x00\x52\x00", "1.2.840.10008.1.2", 3, True, NOW)
    return [
        make_application_activity(NODE, 17, words, STARTED, NOW),
        make_application_activity(NODE, 17, words, STOPPED, NOW),
        make_login(NODE, 17, words, words, NOW),
        make_transferred(NODE, Transfer(party, NODE, "1.2.3", 7, CLASSES, NOW)),
        make_transferred(NODE, Transfer(NODE, Party(""), "1.2.3", 7, {}, NOW)),
        make_study_deleted(NODE, "1.2.3", 7, CLASSES, words, NOW),
        make_query(NODE, asked),
        make_query(NODE, replace(asked, is_answered=False)),
        make_alert(NODE, Alert(NODE_AUTHENTICATION, words, "4", NOW, party, 5)),
        make_alert(NODE, Alert(RECORDING_STOPPED, words, "8", NOW)),
    ]


def _settings(root: Path, authority: Authority | None = None, **audit: object) -> Settings:
    settings = Settings(
        node=NodeSettings(storage_root=root),
        audit=AuditSettings.model_validate(audit),
        send=SendSettings(timeout_s=10.0),
    )
    if authority is None:
        return settings
    return settings.model_copy(update={"tls": authority.settings(authority.sign("/CN=fusion.example.org"))})


def _trail(settings: Settings, database: Database, clock: Clock) -> AuditTrail:
    return AuditTrail(settings, database, clock, default_rng(0))


def _step(trail: AuditTrail) -> None:
    trail.step()
    wait_until(trail.is_idle, WAIT_S, "the collectors being idle")


def _messages(*texts: str) -> list[AuditMessage]:
    return [AuditMessage(number, NOW, text) for number, text in enumerate(texts)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def test_every_kind_of_message_fits_the_schema(tmp_path: Path) -> None:
    texts = [*_texts(), *_texts(HOSTILE), *_texts("")]
    named = [name_patients(text, {3: HOSTILE, 7: "4711"}) for text in texts]
    assert find_schema_errors(tmp_path, [*texts, *named]) == []
    assert all("\n" not in text and text.isascii() and text.isprintable() for text in texts)


def test_the_schema_finds_what_is_wrong(tmp_path: Path) -> None:
    text = make_transferred(NODE, Transfer(SCANNER, NODE, "1.2.3", 7, CLASSES, NOW))
    wrong = [
        text.replace("<ParticipantObjectName>patient</ParticipantObjectName>", ""),
        text.replace('csd-code="110104"', 'code="110104"'),
        text.replace('UserIsRequestor="true"', 'UserIsRequestor="yes"'),
    ]
    assert all(one != text for one in wrong)
    assert [bool(find_schema_errors(tmp_path, [one])) for one in wrong] == [True] * len(wrong)


def test_a_transfer_says_who_what_and_how_much_and_a_patient_by_our_own_number() -> None:
    text = make_transferred(NODE, Transfer(SCANNER, NODE, "1.2.3", 7, CLASSES, NOW))
    assert event_of(text) == "DICOM Instances Transferred"
    assert details_of(text, "EventIdentification", "EventDateTime") == ["2023-11-14T22:13:20.000+00:00"]
    assert details_of(text, "ActiveParticipant", "UserID") == ["SCANNER", "DICOMNODE"]
    assert details_of(text, "ActiveParticipant/RoleIDCode", "csd-code") == ["110153", "110152"]
    assert details_of(text, "ActiveParticipant", "NetworkAccessPointTypeCode") == ["2", "1"]
    assert details_of(text, ".//SOPClass", "NumberOfInstances") == ["176"]
    objects = "ParticipantObjectIdentification"
    assert details_of(text, objects, "ParticipantObjectID") == ["1.2.3", "7"]
    assert details_of(text, f"{objects}/ParticipantObjectIDTypeCode", "codeSystemName") == ["DCM", "99DICOMNODE"]
    named = name_patients(text, {7: "4711"})
    assert details_of(named, objects, "ParticipantObjectID") == ["1.2.3", "4711"]
    assert details_of(named, f"{objects}/ParticipantObjectIDTypeCode", "codeSystemName") == ["DCM", "RFC-3881"]


def test_an_alert_holds_a_stranger_s_words_as_they_can_be_shown() -> None:
    text = make_alert(NODE, Alert(NODE_AUTHENTICATION, HOSTILE, "4", NOW, Party(HOSTILE, "10.0.0.9"), 5))
    (description, count) = (base64.b64decode(one) for one in details_of(text, ".//ParticipantObjectDetail", "value"))
    assert description.decode("utf-8").startswith('<img src=x>&"\\x1b[31m\\x00\\ud800\\ufffe\U0001f4a9é')
    assert len(description.decode("utf-8")) <= 400
    assert count == b"5"


@pytest.mark.parametrize("harm", ["an unknown VR", "cut short"])
def test_a_result_that_the_disk_has_changed_is_told_of_all_the_same(
    database: Database, tmp_path: Path, harm: str
) -> None:
    clock, told = Clock(NOW), tmp_path / "audit.log"
    trail = _trail(_settings(tmp_path, file=str(told)), database, clock)
    trail.start()
    _, output_ids = add_finished_job(database, ("pt",))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], clock())
    [row] = claim_outbox(database, due("pacs", clock()), 10)
    whole = next(iter(write_series(tmp_path / "series", SeriesSpec(shape=(2, 8, 8))))).read_bytes()
    study_uid = b"\x20\x00\x0d\x00UI"
    assert study_uid in whole
    path = tmp_path / row.path
    path.parent.mkdir(parents=True)
    path.write_bytes(whole[:154] if harm == "cut short" else whole.replace(study_uid, study_uid[:-1] + b"\x98"))
    with database.write() as connection:
        record_all_sent(connection, [row], clock())

    _step(trail)

    [line] = [
        line for line in _lines(told) if event_of(line) == "DICOM Instances Transferred" and "PACS" in line.upper()
    ]
    assert "unknown" in line


def test_rsyslog_keeps_all_by_tls_and_in_order(tmp_path: Path, authority: Authority) -> None:
    with Rsyslog(tmp_path / "collector", authority) as collector:
        settings = _settings(tmp_path, authority, host=LOOPBACK, port=collector.tls_port)
        texts = _texts() * 30
        send = make_collectors(settings)["syslog"]
        send(_messages(*texts[:200]))
        send(_messages(*texts[200:]))
        wait_until(lambda: len(collector.messages()) >= len(texts), WAIT_S, "the collector having all")
        kept = collector.messages()
    assert [one.text for one in kept] == texts
    priorities = [84 if 'EventOutcomeIndicator="0"' not in text else 85 for text in texts]
    assert [one.priority for one in kept] == priorities
    assert {(one.version, one.application, one.message_id) for one in kept} == {("1", "dicomnode", "DICOM+RFC3881")}


def test_rsyslog_keeps_a_message_by_udp(tmp_path: Path, authority: Authority) -> None:
    with Rsyslog(tmp_path / "collector", authority) as collector:
        settings = _settings(tmp_path, host=LOOPBACK, port=collector.udp_port, transport="udp")
        (text,) = _texts()[2:3]

        def is_kept() -> bool:  # who listens for datagrams cannot be asked whether it does yet
            make_collectors(settings)["syslog"](_messages(text))
            return any(one.text == text for one in collector.messages())

        wait_until(is_kept, WAIT_S, "a datagram that was kept")


def test_a_collector_with_another_certificate_is_sent_nothing(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other", "Somebody")
    with Rsyslog(tmp_path / "collector", authority) as collector:
        settings = _settings(tmp_path, other, host=LOOPBACK, port=collector.tls_port)
        with pytest.raises(PeerUnreachableError, match=r"certificate is not accepted: .*; tls.ca must hold its CA"):
            make_collectors(settings)["syslog"](_messages(*_texts()))
        assert collector.messages() == []


@pytest.mark.parametrize("reads", [False, True])
def test_a_collector_that_hangs_up_without_a_word_has_not_kept_anything(
    tmp_path: Path, authority: Authority, reads: bool
) -> None:
    context = make_server_context(authority.settings(authority.sign("/CN=audit.example.org")))
    texts = _texts()
    with socket.create_server((LOOPBACK, 0)) as listener:

        def hang_up() -> None:
            client, _ = listener.accept()
            secured = context.wrap_socket(client, server_side=True)
            left = sum(map(len, texts)) if reads else 0
            while left > 0:
                left -= len(secured.recv(left))
            os.close(secured.detach())  # the end of TCP, and none of TLS

        thread = threading.Thread(target=hang_up)
        thread.start()
        settings = _settings(tmp_path, authority, host=LOOPBACK, port=listener.getsockname()[1])
        with pytest.raises(PeerUnreachableError, match="audit collector 127"):
            make_collectors(settings)["syslog"](_messages(*texts))
        thread.join()


def test_what_waits_for_a_collector_arrives_once_and_in_order_when_it_is_back(
    tmp_path: Path, authority: Authority, database: Database
) -> None:
    clock = Clock(NOW)
    file = tmp_path / "audit.log"
    collector = Rsyslog(tmp_path / "collector", authority)
    settings = _settings(tmp_path, authority, host=LOOPBACK, port=collector.tls_port, file=str(file))
    first = _trail(settings, database, clock)
    first.start()
    _step(first)
    for _ in range(5):
        clock.now += 3600.0
        with database.write() as connection:
            for text in _texts():
                record_message(connection, settings.audit.channels, text, clock.now)
        _step(first)
    first.stop(WAIT_S)
    with database.read() as connection:
        states = {state.name: state for state in fetch_channel_states(connection)}
    assert (states["file"].waiting, states["file"].reason) == (0, "")
    waiting = 5 * len(_texts()) + 2  # and a start and a stop
    assert states["syslog"].waiting == waiting
    assert "efused" in states["syslog"].reason
    clock.now += 3600.0
    with collector:
        second = _trail(settings, database, clock)  # another process
        second.start()
        _step(second)
        second.stop(WAIT_S)
        wait_until(lambda: len(collector.messages()) >= waiting + 2, WAIT_S, "the collector having all")
        assert [one.text for one in collector.messages()] == _lines(file)
    assert len(_lines(file)) == waiting + 2
    assert [event_of(_lines(file)[number]) for number in (0, waiting - 1, waiting, waiting + 1)] == [
        "Application Activity: Application Start",
        "Application Activity: Application Stop",
    ] * 2
    assert find_schema_errors(tmp_path, _lines(file)) == []


def test_the_file_is_the_node_s_alone_and_only_grows(tmp_path: Path) -> None:
    path, texts = tmp_path / "audit.log", _texts()
    append(str(path), _messages(texts[0]))
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("ab") as file:
        file.write(b"<AuditMessage torn")  # the disk was full
    append(str(path), _messages(texts[1], texts[2]))
    assert _lines(path) == [texts[0], "<AuditMessage torn", texts[1], texts[2]]
    path.rename(tmp_path / "audit.log.1")
    append(str(path), _messages(texts[3]))
    assert _lines(path) == [texts[3]]
    with pytest.raises(StorageFailedError, match=r"audit\.file .*: Is a directory; the node's user must be able to"):
        append(str(tmp_path), _messages(texts[0]))


def test_what_came_is_told_of_once_by_association_and_study(tmp_path: Path, database: Database) -> None:
    clock, file = Clock(NOW), tmp_path / "audit.log"
    settings = _settings(tmp_path, file=str(file))
    receive(database, replace(MR, number=50, study=50), now=1.0)  # before there was an audit trail
    trail = _trail(settings, database, clock)
    trail.start()
    association_id = receive(database, MR, now=NOW, stays_open=True)
    receive(database, replace(MR, number=9, slices=3), now=NOW, calling_ae="OTHER")
    _step(trail)
    _step(trail)
    (other,) = _lines(file)[1:]
    assert details_of(other, "ActiveParticipant", "UserID") == ["OTHER", "DICOMNODE"]
    assert details_of(other, ".//SOPClass", "NumberOfInstances") == ["3"]
    with database.write() as connection:
        close_association(connection, association_id, NOW + 7.0)
    _step(trail)
    _step(trail)
    scanner = _lines(file)[2:]
    assert [details_of(text, ".//SOPClass", "NumberOfInstances") for text in scanner] == [["10"]]
    assert details_of(scanner[0], "EventIdentification", "EventDateTime") == ["2023-11-14T22:13:27.000+00:00"]
    assert details_of(scanner[0], "ParticipantObjectIdentification", "ParticipantObjectID")[0] == "1.2.3.1"
    assert PATIENT.patient_id not in "".join(_lines(file))
    trail.reload(_settings(tmp_path, file=str(file), patient_id=True))
    receive(database, replace(MR, number=8, study=8), now=NOW)
    _step(trail)
    codes = f".//*[@ParticipantObjectID='{PATIENT.patient_id}']/ParticipantObjectIDTypeCode"
    assert details_of(_lines(file)[-1], codes, "codeSystemName") == ["RFC-3881"]
    assert PATIENT.name not in "".join(_lines(file))
    trail.stop(WAIT_S)


def test_what_is_sent_of_a_job_is_told_of_together(tmp_path: Path, database: Database) -> None:
    clock, file = Clock(NOW), tmp_path / "audit.log"
    settings = _settings(tmp_path, file=str(file))
    peer = PeerSettings(name="pacs", ae_title="ARCHIVE", host="192.0.2.8", port=104, may=("receive",))
    trail = _trail(settings.model_copy(update={"peers": (peer,)}), database, clock)
    trail.start()
    job_id, output_ids = add_finished_job(database, ("pt", "pt", "rgb"))
    _step(trail)
    told = len(_lines(file))
    _write_result(tmp_path / f"outputs/{job_id}/pt-0001.dcm", "1.2.77")
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    rows = claim_outbox(database, due(), 10)
    with database.write() as connection:
        record_all_sent(connection, rows[:1], NOW)
    _step(trail)
    assert len(_lines(file)) == told  # the rest is on its way
    with database.write() as connection:
        record_all_sent(connection, rows[1:], NOW + 5.0)
    clock.now = NOW + 5.0
    _step(trail)
    _step(trail)
    (sent,) = _lines(file)[told:]
    assert details_of(sent, "ActiveParticipant", "UserID") == ["DICOMNODE", "ARCHIVE"]
    assert details_of(sent, ".//SOPClass", "NumberOfInstances") == ["3"]
    assert details_of(sent, "ParticipantObjectIdentification", "ParticipantObjectID")[0] == "1.2.77"
    trail.stop(WAIT_S)


def test_what_takes_long_to_send_is_told_of_meanwhile(tmp_path: Path, database: Database) -> None:
    clock, file = Clock(NOW), tmp_path / "audit.log"
    trail = _trail(_settings(tmp_path, file=str(file)), database, clock)
    trail.start()
    _, output_ids = add_finished_job(database, ("pt", "pt"))
    _step(trail)
    told = len(_lines(file))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    rows = claim_outbox(database, due(), 10)
    with database.write() as connection:
        record_all_sent(connection, rows[:1], NOW)
    for seconds in (59.0, 60.0):
        clock.now = NOW + seconds
        _step(trail)
        assert len(_lines(file)) == told + (seconds == 60.0)
    (sent,) = _lines(file)[told:]
    assert details_of(sent, ".//SOPClass", "NumberOfInstances") == ["1"]
    assert "unknown" in details_of(sent, "ParticipantObjectIdentification", "ParticipantObjectID")  # its file is gone
    trail.stop(WAIT_S)


def test_what_is_too_much_for_the_spool_is_given_up_and_said(
    tmp_path: Path, authority: Authority, database: Database
) -> None:
    clock = Clock(NOW)
    collector = Rsyslog(tmp_path / "collector", authority)
    settings = _settings(tmp_path, authority, host=LOOPBACK, port=collector.tls_port, spool_messages=100)
    trail = _trail(settings, database, clock)
    trail.start()
    with database.write() as connection:
        for number in range(150):
            text = make_alert(NODE, Alert(NODE_AUTHENTICATION, f"number {number}", "4", NOW))
            record_message(connection, ["syslog"], text, NOW + number)
    _step(trail)
    with collector:
        clock.now += 3600.0
        _step(trail)
        trail.stop(WAIT_S)
        wait_until(lambda: len(collector.messages()) >= 92, WAIT_S, "the collector having all")
        events = [event_of(one.text) for one in collector.messages()]
        texts = [one.text for one in collector.messages()]
    assert events == [
        *["Security Alert: Node Authentication"] * 90,
        "Security Alert: Audit Recording Stopped",
        "Application Activity: Application Stop",
    ]
    said = base64.b64decode(details_of(texts[90], ".//ParticipantObjectDetail", "value")[0]).decode("utf-8")
    # The start of the node and the first 60 of these.
    assert said.startswith(
        "61 messages recorded from 2023-11-14T22:13:20+00:00 to 2023-11-14T22:14:19+00:00 were given"
    )


def test_a_changed_configuration_is_recorded_by_the_names_of_its_sections(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "audit.log"
    settings = _settings(tmp_path, file=str(file))
    trail = _trail(settings, database, Clock(NOW))
    trail.start()
    trail.reload(settings)
    peer = PeerSettings(name="pacs", ae_title="ARCHIVE", host="192.0.2.8", port=104)
    trail.reload(settings.model_copy(update={"peers": (peer,)}))
    trail.reload(settings.model_copy(update={"peers": (peer,), "send": SendSettings(attempts=7)}))
    _step(trail)
    trail.stop(WAIT_S)
    texts = _lines(file)[1:-1]
    assert [event_of(text) for text in texts] == [
        "Security Alert: Security Configuration",
        "Security Alert: Software Configuration",
    ]
    said = [base64.b64decode(details_of(text, ".//ParticipantObjectDetail", "value")[0]) for text in texts]
    assert said == [b"the configuration changed: peers", b"the configuration changed: send"]


def test_what_peers_are_asked_is_told_of_without_whose_it_is(tmp_path: Path, database: Database) -> None:
    with DcmQrScp(tmp_path, {}) as archive:
        asked = PeerSettings(
            name="pacs", ae_title="QRSCP", host=LOOPBACK, port=archive.port, may=("store",), answers=("find", "get")
        )
        away = asked.model_copy(update={"name": "away", "port": free_port()})
        settings = _settings(tmp_path, file=str(tmp_path / "audit.log"))
        settings = settings.model_copy(update={"peers": (asked, away)})
        receive(database, PET, now=1.0)
        with database.write() as connection:
            series_id = fetch_series(connection, PET.series_uid).row.id
            asking: tuple[tuple[Kind, str], ...] = (("priors", "pacs"), ("count", "pacs"), ("count", "away"))
            for kind, peer in asking:
                add_query(connection, kind, series_id, peer, 1.0)
        service = QueryService(settings, database, Clock(NOW), default_rng(0))
        service.step()
        wait_until(lambda: _are_answered(database, series_id), WAIT_S, "the questions being answered")
        service.stop(WAIT_S)
    with database.read() as connection:
        texts = [message.text for message in fetch_messages(connection, "file", 10)]
    assert [event_of(text) for text in texts] == ["Query"] * 2  # nobody was there to be asked the third
    outcomes = [details_of(text, "EventIdentification", "EventOutcomeIndicator") for text in texts]
    assert outcomes == [["0"], ["4"]]  # it does not know the series
    assert [details_of(text, "ActiveParticipant", "UserID") for text in texts] == [["DICOMNODE", "QRSCP"]] * 2
    encoded = [ET.fromstring(text).findtext(".//ParticipantObjectQuery") or "" for text in texts]  # noqa: S314 - ours
    priors, count = (decode(BytesIO(base64.b64decode(one)), True, True) for one in encoded)
    assert (priors.QueryRetrieveLevel, priors.ModalitiesInStudy, priors.PatientID) == ("STUDY", "MR", "")
    assert (count.QueryRetrieveLevel, count.SeriesInstanceUID) == ("SERIES", PET.series_uid)
    assert find_schema_errors(tmp_path, texts) == []


def _are_answered(database: Database, series_id: int) -> bool:
    with database.read() as connection:
        return all(query.state in ("done", "failed") for query in fetch_queries(connection, [series_id]))


def test_without_a_channel_nothing_is_kept(tmp_path: Path, database: Database) -> None:
    trail = _trail(_settings(tmp_path), database, Clock(NOW))
    trail.start()
    receive(database, MR, now=NOW)
    _step(trail)
    trail.reload(_settings(tmp_path, spool_messages=500))
    trail.stop(WAIT_S)
    with database.read() as connection:
        assert fetch_channel_states(connection) == []
        assert fetch_messages(connection, "file", 10) == []


def _write_result(path: Path, study_uid: str) -> None:
    path.parent.mkdir(parents=True)
    result = Dataset()
    result.SOPClassUID, result.SOPInstanceUID, result.StudyInstanceUID = PET_CLASS, "1.2.4.1", study_uid
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.save_as(path, enforce_file_format=True)
