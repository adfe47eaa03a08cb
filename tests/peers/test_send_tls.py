"""We send by TLS to DCMTK's storescp and to Orthanc, and never without to a peer that should be called by it.

Flow: dicomnode.send > [test_send_tls] > DCMTK, Orthanc, openssl
Never: a certificate that was not made here; a peer beyond loopback.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomnode.errors import PeerUnreachableError
from dicomnode.send.scu import Caller, make_caller, open_store_association, send_echo
from dicomnode.settings import NodeSettings, PeerSettings, SendSettings, Settings, TlsSettings
from tests.certificates import Authority, Identity
from tests.conftest import find_peer_program
from tests.peers.test_send_scu import _instances, _send
from tests.peers_programs import LOOPBACK, Orthanc, Process, StoreScp, data_set_bytes, free_port
from tests.waiting import wait_until

TIMEOUT_S = 3.0
TLS_HANDSHAKE = b"\x16"  # RFC 8446 5.1: the type of the first record


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Identity:
    return authority.sign("/O=Hospital/CN=pacs.example.org")


@pytest.fixture(scope="module")
def caller(authority: Authority) -> Caller:
    return _call(authority.settings(authority.sign("/O=Hospital/CN=fusion.example.org")))


def _call(tls: TlsSettings, timeout_s: float = 10.0) -> Caller:
    node, send = NodeSettings(ae_title="DICOMNODE"), SendSettings(timeout_s=timeout_s)
    return make_caller(Settings(node=node, tls=tls, send=send, peers=(_peer(104),)))


def _peer(port: int, ae_title: str = "ANY", host: str = LOOPBACK) -> PeerSettings:
    return PeerSettings(name="pacs", ae_title=ae_title, host=host, port=port, may=("receive",), tls=True)


def test_storescp_gets_the_files_own_bytes_by_tls(
    tmp_path: Path, authority: Authority, theirs: Identity, caller: Caller
) -> None:
    instances = _instances(tmp_path / "out")
    with StoreScp(tmp_path, options=authority.dcmtk_options(theirs)) as storescp:
        assert _send(_peer(storescp.port), instances, caller) == ["", "", ""]
        assert _send(_peer(storescp.port, host="localhost"), instances, caller) == ["", "", ""]
        wait_until(lambda: len(storescp.files()) == 3, 10)
        stored = {data_set_bytes(path.read_bytes()) for path in storescp.files()}
    assert stored == {data_set_bytes(one.path.read_bytes()) for one in instances}


def test_orthanc_gets_the_files_own_bytes_by_tls(
    tmp_path: Path, authority: Authority, theirs: Identity, caller: Caller
) -> None:
    instances = [*_instances(tmp_path / "mr"), *_instances(tmp_path / "pet", modality="PT")]
    further = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(theirs.certificate),
        "DicomTlsPrivateKey": str(theirs.key),
        "DicomTlsTrustedCertificates": str(authority.certificate),
        "DicomTlsRemoteCertificateRequired": True,
    }
    with Orthanc(tmp_path / "orthanc", further=further) as orthanc:
        assert _send(_peer(orthanc.port, orthanc.ae_title), instances, caller) == [""] * 6
        stored = orthanc.fetch_files()
    assert {uid: data_set_bytes(file) for uid, file in stored.items()} == {
        one.sop_instance_uid: data_set_bytes(one.path.read_bytes()) for one in instances
    }


def test_a_server_s_certificate_must_be_of_our_ca_and_name_its_host(
    tmp_path: Path, authority: Authority, caller: Caller
) -> None:
    elsewhere = authority.sign("/CN=elsewhere", names="DNS:elsewhere.example.org")
    other = Authority(tmp_path / "other")
    stranger, expired = other.sign("/CN=stranger"), authority.sign("/CN=expired", days=-1)
    for identity, why in (
        (elsewhere, "IP address mismatch, certificate is not valid for '127.0.0.1'; it must be signed by"),
        (stranger, "unable to get local issuer certificate"),
        (expired, "certificate has expired"),
    ):
        with (
            StoreScp(tmp_path, options=[*authority.dcmtk_options(identity), "-ic"]) as storescp,
            pytest.raises(
                PeerUnreachableError, match=r"pacs \(ANY at 127.0.0.1:\d+\): its certificate is not"
            ) as caught,
        ):
            _send(_peer(storescp.port), _instances(tmp_path / "out", slices=1), caller)
        assert why in str(caught.value)
        assert storescp.files() == []


def test_whoever_hangs_up_leaves_tls_to_the_thread_that_sends(
    tmp_path: Path, authority: Authority, theirs: Identity, caller: Caller
) -> None:
    (instance,) = _instances(tmp_path / "out", slices=1)
    with (
        StoreScp(tmp_path, options=authority.dcmtk_options(theirs)) as storescp,
        open_store_association(_peer(storescp.port), caller, [instance.context]) as association,
    ):
        association.hang_up()
        connection = association._wire._connection
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.version() is not None  # without it, the rest of the instance would go as plain text
        with pytest.raises(PeerUnreachableError):
            association.store(instance, 1)


def test_a_destination_with_another_certificate_than_configured_is_sent_nothing(
    tmp_path: Path, authority: Authority, theirs: Identity, caller: Caller
) -> None:
    other = authority.sign("/CN=other")  # of the same CA, for the same host
    instances = _instances(tmp_path / "out", slices=1)
    second = tmp_path / "second"
    second.mkdir()
    with StoreScp(tmp_path, options=[*authority.dcmtk_options(theirs), "-ic"]) as storescp:
        bound = _peer(storescp.port).model_copy(update={"certificate_sha256": theirs.sha256})
        assert _send(bound, instances, caller) == [""]
    with StoreScp(second, options=[*authority.dcmtk_options(other), "-ic"]) as storescp:
        for key, value in (("certificate_sha256", theirs.sha256), ("certificate_subject", "CN=pacs")):
            bound = _peer(storescp.port).model_copy(update={key: value})
            with pytest.raises(PeerUnreachableError, match="its certificate is not the configured one") as caught:
                _send(bound, instances, caller)
            assert f"it showed 'CN = other' (SHA-256 {other.sha256}), but {key} '{value}' is needed" in str(
                caught.value
            )
        assert storescp.files() == []


def test_a_peer_that_does_not_accept_our_certificate_is_named(
    tmp_path: Path, authority: Authority, theirs: Identity
) -> None:
    other = Authority(tmp_path / "other")
    stranger = other.sign("/CN=stranger")
    tls = TlsSettings(certificate=str(stranger.certificate), key=str(stranger.key), ca=str(authority.certificate))
    with (
        StoreScp(tmp_path, options=authority.dcmtk_options(theirs)) as storescp,
        pytest.raises(
            PeerUnreachableError, match=r"no TLS: .*unknown ca; does it speak TLS at this port, and does it trust"
        ),
    ):
        send_echo(_peer(storescp.port), _call(tls))


def test_a_peer_that_speaks_no_tls_is_sent_nothing_without(tmp_path: Path, caller: Caller) -> None:
    with (
        StoreScp(tmp_path) as storescp,
        pytest.raises(PeerUnreachableError),
    ):
        _send(_peer(storescp.port), _instances(tmp_path / "out", slices=1), caller)
    assert storescp.files() == []
    with _listening(lambda connection: first.append(connection.recv(1))) as port:
        first: list[bytes] = []
        with pytest.raises(PeerUnreachableError):
            send_echo(_peer(port), caller)
    assert first == [TLS_HANDSHAKE]


def test_a_caller_without_tls_cannot_call_a_peer_by_it() -> None:
    with pytest.raises(ValueError, match="pacs is called by TLS, and the caller has no context for it"):
        send_echo(_peer(104), Caller("DICOMNODE", timeout_s=1.0))


@pytest.mark.parametrize("version", ["-tls1_1", "-tls1_2", "-tls1_3"])
def test_peers_of_old_versions_are_not_called(
    tmp_path: Path, authority: Authority, theirs: Identity, version: str
) -> None:
    port = free_port()
    command: list[str | Path] = [
        find_peer_program("openssl"),
        "s_server",
        "-accept",
        f"{LOOPBACK}:{port}",
        version,
        "-quiet",
    ]
    command += ["-cipher", "DEFAULT:@SECLEVEL=0", "-cert", theirs.certificate, "-key", theirs.key]
    caller = _call(TlsSettings(ca=str(authority.certificate)), timeout_s=1.0)
    with (
        Process([*command, "-no_ticket"], tmp_path / "server.log", [port]),
        pytest.raises(PeerUnreachableError) as caught,
    ):
        send_echo(_peer(port), caller)
    # Those that we speak with shake hands, and then know no DICOM.
    assert ("no TLS: " in str(caught.value)) == (version == "-tls1_1")


def test_a_peer_that_is_silent_before_or_after_the_handshake_is_left_in_time(
    authority: Authority, theirs: Identity, caller: Caller
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(theirs.certificate, theirs.key)  # two tickets follow the handshake by TLS 1.3

    def shake_hands(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            wait_until(is_over.is_set, 30)
            assert secured.version() == "TLSv1.3"

    def be_silent(connection: socket.socket) -> None:
        wait_until(is_over.is_set, 30)

    impatient = Caller(caller.ae_title, TIMEOUT_S, caller.tls)
    for behave in (be_silent, shake_hands):
        is_over = threading.Event()
        with _listening(behave) as port:
            started = time.monotonic()
            with pytest.raises(PeerUnreachableError):
                send_echo(_peer(port), impatient)
            assert time.monotonic() - started < 3 * TIMEOUT_S
            is_over.set()


@contextmanager
def _listening(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """Accept one connection and treat it as told."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)
    assert not thread.is_alive()
