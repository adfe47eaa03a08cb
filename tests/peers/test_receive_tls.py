"""Callers by TLS: DCMTK, Orthanc and OpenSSL, those that are let in and those that are not, all at once.

Flow: dicomnode.receive > [test_receive_tls] > DCMTK, Orthanc, openssl
Never: a certificate that was not made here; a peer beyond loopback.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from pynetdicom.transport import AssociationSocket
from structlog.testing import capture_logs

from dicomnode.errors import ConfigurationError
from dicomnode.receive import handshake
from dicomnode.settings import PeerSettings, TlsSettings
from tests.certificates import Authority, Identity
from tests.conftest import find_peer_program
from tests.peers.test_receive_dcmtk import assert_stored, make_files, write
from tests.peers_programs import LOOPBACK, Orthanc, Sent, free_port, send_with_dcmtk
from tests.raw_scu import RawScu
from tests.receiving import MR, encode, make_data_set
from tests.storage_scp import SCANNER, RunningScp
from tests.waiting import wait_until

EXPLICIT = "1.2.840.10008.1.2.1"
SUBJECT = "/O=Hospital/CN=pet.example.org"


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Identity:
    return authority.sign("/O=Hospital/CN=fusion.example.org")


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Identity:
    return authority.sign(SUBJECT)


@pytest.fixture
def tls(authority: Authority, ours: Identity) -> TlsSettings:
    return authority.settings(ours, free_port())


@pytest.fixture
def node(tmp_path: Path, tls: TlsSettings, theirs: Identity) -> Iterator[RunningScp]:
    peers = (
        SCANNER,
        _peer("PET", certificate_sha256=theirs.sha256),
        _peer("PETCT", certificate_subject="O=Hospital, CN = pet.example.org"),
        _peer("OTHER", certificate_subject="subject=O = Hospital, CN = other.example.org"),
        _peer("ORTHANC"),
    )
    with RunningScp(tmp_path / "root", peers, tls=tls) as running:
        yield running


def _peer(ae_title: str, **keys: str) -> PeerSettings:
    return PeerSettings.model_validate(
        {"name": ae_title, "ae_title": ae_title, "host": "127.0.0.0/8", "port": 104, "may": ["store"], **keys}
    )


def _send(files: list[Path], port: int, options: list[str], calling: str = "SCANNER") -> Sent:
    return send_with_dcmtk(files, port, called="DICOMNODE", calling=calling, options=["-R", *options])


@pytest.mark.parametrize("calling", ["SCANNER", "PET", "PETCT"])
def test_storescu_sends_by_tls_bit_for_bit(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, tmp_path: Path, calling: str
) -> None:
    files = make_files(tmp_path / "files")
    with capture_logs() as logs:
        sent = _send(files, tls.port, authority.dcmtk_options(theirs), calling)
    assert sent.all_stored, sent.output
    assert_stored(node, files, EXPLICIT)
    assert [(row["version"], row["certificate"]) for row in logs if row["event"] == "receive.secured"] == [
        ("TLSv1.3", f"'O = Hospital, CN = pet.example.org' (SHA-256 {theirs.sha256})")
    ]


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_every_bcp_195_profile_of_dcmtk_is_met(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, tmp_path: Path, profile: str
) -> None:
    files = make_files(tmp_path / "files", count=1)
    sent = _send(files, tls.port, [*authority.dcmtk_options(theirs), profile])
    assert sent.all_stored, sent.output


def test_large_instances_arrive_whole(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, tmp_path: Path
) -> None:
    files = [write(tmp_path / f"{number}.dcm", make_data_set(number, size=1024)) for number in range(4)]
    sent = _send(files, tls.port, authority.dcmtk_options(theirs))
    assert sent.all_stored, sent.output
    assert_stored(node, files, EXPLICIT)


def test_pdus_that_share_a_record_are_both_read(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second has been decrypted with the first, and nothing more comes that `select` could see.
    data_set = make_data_set(1)
    with RawScu(tls.port, tls=trust(authority, theirs)) as scu:
        transport = cast(AssociationSocket, scu.association.dul.socket)
        send, held = transport.send, list[bytes]()

        def send_two_as_one(pdu: bytes) -> None:
            held.append(pdu)
            if len(held) == len(["command", "data set"]):
                send(b"".join(held))

        monkeypatch.setattr(transport, "send", send_two_as_one)
        assert scu.store(MR, str(data_set.SOPInstanceUID), encode(data_set)) == 0
        monkeypatch.undo()
    assert len(held) == len(["command", "data set"])


def test_orthanc_sends_by_tls(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, tmp_path: Path
) -> None:
    remote = {"AET": "DICOMNODE", "Host": LOOPBACK, "Port": tls.port, "UseDicomTls": True}
    further = {
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.certificate),
        "DicomModalities": {"node": remote},
    }
    files = make_files(tmp_path / "files")
    with Orthanc(tmp_path / "orthanc", further=further) as orthanc:
        identifiers = [json.loads(orthanc.post("/instances", path.read_bytes()))["ID"] for path in files]
        orthanc.post("/modalities/node/store", json.dumps(identifiers).encode())
    assert set(node.stored()) == {str(make_data_set(number).SOPInstanceUID) for number in range(len(files))}


def _no_certificate(authority: Authority, theirs: Identity, tmp_path: Path) -> list[str]:
    return ["+tla", "+cf", str(authority.certificate)]


def _other_authority(authority: Authority, theirs: Identity, tmp_path: Path) -> list[str]:
    stranger = Authority(tmp_path / "other", "Other CA").sign(SUBJECT)
    return authority.dcmtk_options(stranger)


def _trusts_another(authority: Authority, theirs: Identity, tmp_path: Path) -> list[str]:
    other = Authority(tmp_path / "other", "Other CA")
    return ["+tls", str(theirs.key), str(theirs.certificate), "+cf", str(other.certificate)]


def _expired(authority: Authority, theirs: Identity, tmp_path: Path) -> list[str]:
    return authority.dcmtk_options(authority.sign(SUBJECT, days=-1))


def _plain(authority: Authority, theirs: Identity, tmp_path: Path) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("make_options", "why"),
    [
        (_no_certificate, "it showed no certificate, and tls.require_client_certificate needs one"),
        (_other_authority, "its certificate is not accepted: unable to get local issuer certificate"),
        (_trusts_another, "it did not accept ours: unknown ca (TLS alert)"),
        (_expired, "its certificate is not accepted: certificate has expired"),
        (_plain, "it did not speak TLS; node.port is for callers without"),
    ],
)
def test_who_is_not_trusted_is_refused_while_another_sends(
    node: RunningScp,
    tls: TlsSettings,
    authority: Authority,
    theirs: Identity,
    tmp_path: Path,
    make_options: Callable[[Authority, Identity, Path], list[str]],
    why: str,
) -> None:
    files = make_files(tmp_path / "files", count=1)
    options = make_options(authority, theirs, tmp_path)
    with _connect(tls, authority, theirs) as good, capture_logs() as logs:
        sent = _send(files, tls.port, options)
        assert sent.returncode != 0
        assert sent.statuses == ()
        assert node.files() == []
        wait_until(lambda: _refusals(logs), 10, "the refusal in the log")
        assert good.version() == "TLSv1.3"
        assert _send(files, tls.port, authority.dcmtk_options(theirs)).all_stored
    assert [row["rule"] for row in _refusals(logs)] == ["TLS"]
    assert f"{LOOPBACK}: {why}" in _refusals(logs)[0]["why"]


def _refusals(logs: Sequence[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [row for row in logs if row["event"] == "receive.refused"]


def _connect(tls: TlsSettings, authority: Authority, identity: Identity) -> ssl.SSLSocket:
    """Connect, shake hands, and say nothing more."""
    connection = socket.create_connection((LOOPBACK, tls.port), timeout=10)
    return trust(authority, identity).wrap_socket(connection, server_hostname=LOOPBACK)


def trust(authority: Authority, identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(identity.certificate, identity.key)
    return context


@pytest.mark.parametrize(
    ("options", "is_met"),
    [
        (["-tls1_1"], False),
        (["-tls1_2"], True),
        (["-tls1_3"], True),
        (["-tls1_2", "-cipher", "AES256-GCM-SHA384:AES128-SHA"], False),  # no forward secrecy
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"], False),  # CBC, no AEAD
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], True),
    ],
)
def test_protocols_and_suites_are_those_of_bcp_195(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, options: list[str], is_met: bool
) -> None:
    if "-cipher" not in options:
        options = [*options, "-cipher", "DEFAULT:@SECLEVEL=0"]
    command: list[str | Path] = [
        find_peer_program("openssl"),
        "s_client",
        "-connect",
        f"{LOOPBACK}:{tls.port}",
        *options,
    ]
    command += ["-CAfile", authority.certificate, "-cert", theirs.certificate, "-key", theirs.key]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert ("Verify return code: 0 (ok)" in done.stdout and "Cipher is (NONE)" not in done.stdout) == is_met, (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    ("calling", "message"),
    [
        (
            "OTHER",
            "'OTHER' called us from 127.0.0.1 with the certificate 'O = Hospital, CN = pet.example.org' "
            "(SHA-256 {sha256}), but is configured with certificate_subject 'O=Hospital,CN=other.example.org' "
            "(peer OTHER)",
        ),
        ("NOBODY", "'NOBODY' called us from 127.0.0.1, but no configured peer has this AE title"),
    ],
)
def test_a_certificate_of_another_ae_title_is_refused_in_words(
    node: RunningScp,
    tls: TlsSettings,
    authority: Authority,
    theirs: Identity,
    tmp_path: Path,
    calling: str,
    message: str,
) -> None:
    with capture_logs() as logs:
        sent = _send(make_files(tmp_path / "files", count=1), tls.port, authority.dcmtk_options(theirs), calling)
    assert "Reason: Calling AE Title Not Recognized" in sent.output
    assert [row["why"] for row in _refusals(logs)] == [message.format(sha256=theirs.sha256)]
    assert node.files() == []


def test_a_peer_with_a_certificate_is_refused_without_tls(node: RunningScp, tmp_path: Path, theirs: Identity) -> None:
    with capture_logs() as logs:
        sent = _send(make_files(tmp_path / "files", count=1), node.port, [], "PET")
    assert "Reason: Calling AE Title Not Recognized" in sent.output
    assert [row["why"] for row in _refusals(logs)] == [
        "'PET' called us from 127.0.0.1 without a certificate, "
        f"but is configured with certificate_sha256 '{theirs.sha256}' (peer PET)"
    ]


def test_without_require_client_certificate_only_bound_peers_need_one(
    tmp_path: Path, authority: Authority, ours: Identity, theirs: Identity
) -> None:
    tls = authority.settings(ours, free_port(), require_client_certificate=False)
    files = make_files(tmp_path / "files", count=1)
    anonymous = ["+tla", "+cf", str(authority.certificate)]
    peers = (SCANNER, _peer("PET", certificate_sha256=theirs.sha256))
    with RunningScp(tmp_path / "root", peers, tls=tls):
        assert "Calling AE Title Not Recognized" in _send(files, tls.port, anonymous, "PET").output
        assert _send(files, tls.port, anonymous, "SCANNER").all_stored
        assert _send(files, tls.port, authority.dcmtk_options(theirs), "PET").all_stored


def test_silent_callers_block_nobody_and_are_closed(
    node: RunningScp,
    tls: TlsSettings,
    authority: Authority,
    theirs: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 3.0)
    with capture_logs() as logs:
        silent = [socket.create_connection((LOOPBACK, tls.port), timeout=30) for _ in range(150)]
        silent[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # the begin of a ClientHello
        assert _send(make_files(tmp_path / "files"), tls.port, authority.dcmtk_options(theirs)).all_stored
        for connection in silent:
            assert connection.recv(1) == b""
            connection.close()
    assert {row["why"] for row in _refusals(logs)} == {f"{LOOPBACK}: it did not finish the TLS handshake within 3 s"}


def test_a_stop_does_not_wait_for_silent_callers(node: RunningScp, tls: TlsSettings) -> None:
    with socket.create_connection((LOOPBACK, tls.port), timeout=5) as silent:
        wait_until(lambda: node.scp._tls_server and node.scp._tls_server.waiting.count(), 5, "the handshake to begin")
        node.stop(5.0)
        assert silent.recv(1) == b""


def test_a_reload_takes_a_new_certificate_while_an_association_runs(
    tmp_path: Path, authority: Authority, theirs: Identity
) -> None:
    first, second = authority.sign("/CN=first"), authority.sign("/CN=second")
    tls = authority.settings(first, free_port())
    data = encode(make_data_set(1))
    with RunningScp(tmp_path / "root", tls=tls) as node, RawScu(tls.port, tls=trust(authority, theirs)) as scu:
        running = cast(ssl.SSLSocket, cast(AssociationSocket, scu.association.dul.socket).socket)
        assert _common_name(running) == "first"
        assert scu.store(MR, str(make_data_set(1).SOPInstanceUID), data) == 0
        first.certificate.write_bytes(second.certificate.read_bytes())
        first.key.write_bytes(second.key.read_bytes())
        node.scp.reload(node.settings)
        with _connect(tls, authority, theirs) as other:
            assert _common_name(other) == "second"
        assert scu.store(MR, str(make_data_set(1).SOPInstanceUID), data) == 0
        assert _common_name(running) == "first"


def _common_name(connection: ssl.SSLSocket) -> str:
    certificate = connection.getpeercert()
    assert certificate is not None
    names: tuple[tuple[tuple[str, str], ...], ...] = certificate["subject"]  # type: ignore[assignment]  # typeshed
    return names[-1][0][1]


def test_a_caller_that_hangs_up_is_no_refusal(node: RunningScp, tls: TlsSettings) -> None:
    with capture_logs() as logs:
        socket.create_connection((LOOPBACK, tls.port), timeout=5).close()
        wait_until(lambda: any(row["event"] == "receive.no_handshake" for row in logs), 10, "the end of the handshake")
    assert _refusals(logs) == []


def test_which_port_is_open_changes_with_a_restart_only(
    node: RunningScp, tls: TlsSettings, authority: Authority, theirs: Identity, tmp_path: Path
) -> None:
    for changed in (TlsSettings(), tls.model_copy(update={"port": free_port()})):
        with capture_logs() as logs:
            node.scp.reload(node.settings.model_copy(update={"tls": changed}))
        assert [row["sections"] for row in logs if row["event"] == "node.restart_needed"] == [["tls"]]
    with capture_logs() as logs:
        node.scp.reload(node.settings)
    assert "node.restart_needed" not in {row["event"] for row in logs}
    assert _send(make_files(tmp_path / "files", count=1), tls.port, authority.dcmtk_options(theirs)).all_stored


def test_a_port_that_cannot_be_opened_is_named_and_the_other_closed(
    tmp_path: Path, authority: Authority, ours: Identity
) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        tls = authority.settings(ours, holder.getsockname()[1])
        running = RunningScp(tmp_path / "root", tls=tls)
        with pytest.raises(ConfigurationError, match=f"tls.port {tls.port}: Address already in use"), running:
            pass
        assert not running.scp.is_served()
        running.database.close()
