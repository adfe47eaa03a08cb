"""Who may associate and who may store, and what an administrator reads when somebody may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from dicomnode.certificates import PeerCertificate
from dicomnode.receive.pdus import APPLICATION_CONTEXT, PROTOCOL_VERSION, RequestHead
from dicomnode.receive.policy import Admission, Caller, Refusal, admit, normalise_address
from dicomnode.settings import NodeSettings, PeerSettings, ReceiveSettings, Settings, TlsSettings
from dicomnode.status import RejectReason

CALLING, CALLED = RejectReason.CALLING_AE_TITLE_NOT_RECOGNISED, RejectReason.CALLED_AE_TITLE_NOT_RECOGNISED
PEERS = (
    PeerSettings(name="mr", ae_title="MODALITY7", host="10.1.2.8", port=104, may=("store",)),
    PeerSettings(name="pacs", ae_title="PACS", host="pacs.example", port=104, may=("receive",)),
    PeerSettings(name="pet-a", ae_title="PET", host="10.1.2.20", port=104),
    PeerSettings(name="pet-b", ae_title="PET", host="10.1.2.21", port=104, may=("store",)),
    PeerSettings(name="echo", ae_title="TWICE", host="10.1.2.40", port=104),
    PeerSettings(name="both", ae_title="TWICE", host="10.1.2.40", port=105, may=("store",)),
    PeerSettings(name="gone", ae_title="GONE", host="gone.example", port=104, may=("store",)),
    PeerSettings(name="ward", ae_title="WARD", host="10.3.0.0/16", port=104, may=("store",)),
    PeerSettings(name="ward6", ae_title="WARD", host="2001:db8:3::/48", port=104),
    PeerSettings(name="ct-a", ae_title="CT", host="10.1.2.50", port=104, certificate_sha256="AA:" * 31 + "aa"),
    PeerSettings(
        name="ct-b",
        ae_title="CT",
        host="10.1.2.50",
        port=104,
        may=("store",),
        certificate_sha256="b" * 64,
        certificate_subject="subject=O = Hospital, CN=ct.example.org",
    ),
)
TLS = TlsSettings(certificate="node.pem", key="node.key", ca="ca.pem")
ADDRESSES = {
    "mr": frozenset({"10.1.2.8"}),
    "pacs": frozenset({"10.1.2.30", "2001:db8::30"}),
    "pet-a": frozenset({"10.1.2.20"}),
    "pet-b": frozenset({"10.1.2.21"}),
    "echo": frozenset({"10.1.2.40"}),
    "both": frozenset({"10.1.2.40"}),
    "gone": frozenset[str](),
    "ward": frozenset({"10.3.0.0/16"}),
    "ward6": frozenset({"2001:db8:3::/48"}),
    "ct-a": frozenset({"10.1.2.50"}),
    "ct-b": frozenset({"10.1.2.50"}),
}


def settings(receive: ReceiveSettings | None = None) -> Settings:
    return Settings(node=NodeSettings(ae_title="DICOMNODE"), receive=receive or ReceiveSettings(), tls=TLS, peers=PEERS)


def head(calling: str, called: str = "DICOMNODE") -> RequestHead:
    return RequestHead(PROTOCOL_VERSION, called, calling, APPLICATION_CONTEXT)


def judge(
    calling: str,
    address: str,
    called: str = "DICOMNODE",
    receive: ReceiveSettings | None = None,
    certificate: PeerCertificate | None = None,
) -> Admission | Refusal:
    return admit(settings(receive), ADDRESSES, Caller(head(calling, called), address, certificate))


@pytest.mark.parametrize(
    ("calling", "address", "admission"),
    [
        ("MODALITY7", "10.1.2.8", Admission("MODALITY7", "mr", may_store=True)),
        ("MODALITY7", "::ffff:10.1.2.8", Admission("MODALITY7", "mr", may_store=True)),
        ("PACS", "10.1.2.30", Admission("PACS", "pacs", may_store=False)),
        ("PACS", "2001:0db8:0:0::30", Admission("PACS", "pacs", may_store=False)),
        ("PET", "10.1.2.20", Admission("PET", "pet-a", may_store=False)),
        ("PET", "10.1.2.21", Admission("PET", "pet-b", may_store=True)),
        ("TWICE", "10.1.2.40", Admission("TWICE", "both", may_store=True)),
        ("WARD", "10.3.255.7", Admission("WARD", "ward", may_store=True)),
        ("WARD", "::ffff:10.3.255.7", Admission("WARD", "ward", may_store=True)),
        ("WARD", "2001:db8:3::9", Admission("WARD", "ward6", may_store=False)),
    ],
)
def test_configured_peers_are_admitted(calling: str, address: str, admission: Admission) -> None:
    found = judge(calling, address)
    assert isinstance(found, Admission)
    assert replace(found, names=()) == admission
    assert admission.peer in found.names


@pytest.mark.parametrize("accept", ["configured", "any"])
def test_a_caller_is_every_configured_peer_of_its_title_and_address(accept: Literal["configured", "any"]) -> None:
    found = judge("TWICE", "10.1.2.40", receive=ReceiveSettings(accept=accept))
    assert isinstance(found, Admission)
    assert found.names == ("echo", "both")


@pytest.mark.parametrize(
    ("calling", "address", "rule", "message"),
    [
        (
            "MODALITY7",
            "10.1.2.9",
            "address of the peer",
            "'MODALITY7' called us from 10.1.2.9, but is configured at 10.1.2.8 (peer mr)",
        ),
        (
            "PACS",
            "10.1.2.8",
            "address of the peer",
            "'PACS' called us from 10.1.2.8, but is configured at pacs.example = 10.1.2.30, 2001:db8::30 (peer pacs)",
        ),
        (
            "PET",
            "10.1.2.8",
            "address of the peer",
            "'PET' called us from 10.1.2.8, but is configured at 10.1.2.20 (peer pet-a), 10.1.2.21 (peer pet-b)",
        ),
        (
            "GONE",
            "10.1.2.8",
            "address of the peer",
            "'GONE' called us from 10.1.2.8, but is configured at gone.example = no known address (peer gone)",
        ),
        (
            "WARD",
            "10.4.0.1",
            "address of the peer",
            "'WARD' called us from 10.4.0.1, but is configured at 10.3.0.0/16 (peer ward), "
            "2001:db8:3::/48 (peer ward6)",
        ),
        (
            "CT",
            "10.1.2.50",
            "certificate of the peer",
            "'CT' called us from 10.1.2.50 without a certificate, but is configured with certificate_sha256 "
            f"'{'a' * 64}' (peer ct-a), certificate_sha256 '{'b' * 64}' and certificate_subject "
            "'O=Hospital,CN=ct.example.org' (peer ct-b)",
        ),
        (
            "NOBODY",
            "10.1.2.8",
            "configured peers",
            "'NOBODY' called us from 10.1.2.8, but no configured peer has this AE title",
        ),
        (
            "modality7",
            "10.1.2.8",
            "configured peers",
            "'modality7' called us from 10.1.2.8, but no configured peer has this AE title",
        ),
        (
            "A\nB\x1b[31m",
            "10.1.2.8",
            "calling AE title",
            "10.1.2.8 called us as 'A\\nB\\x1b[31m': an AE title holds printable ASCII without backslash, "
            "this one holds '\\n'",
        ),
        (
            "",
            "10.1.2.8",
            "calling AE title",
            "10.1.2.8 called us as '': an AE title is 1 to 16 characters, this one is empty",
        ),
    ],
)
def test_others_are_refused_in_words(calling: str, address: str, rule: str, message: str) -> None:
    assert judge(calling, address) == Refusal(CALLING, rule, message)


@pytest.mark.parametrize(
    ("digit", "subject", "peer"),
    [
        ("a", "CN = anything", "ct-a"),
        ("b", "O = Hospital, CN = ct.example.org", "ct-b"),
        ("b", "O = Hospital, CN = CT.example.org", None),
        ("b", "O = Hospital", None),
        ("b", 'O = "Hospital, CN = ct.example.org"', None),
        ("c", "O = Hospital, CN = ct.example.org", None),
    ],
)
def test_a_certificate_binds_its_peer(digit: str, subject: str, peer: str | None) -> None:
    verdict = judge("CT", "10.1.2.50", certificate=PeerCertificate(digit * 64, subject))
    assert (verdict.peer if isinstance(verdict, Admission) else None) == peer


def test_a_hostile_subject_is_escaped() -> None:
    verdict = judge("CT", "10.1.2.50", certificate=PeerCertificate("c" * 64, "CN = a\nb\x1b[31m\u202e"))
    assert isinstance(verdict, Refusal)
    assert f"with the certificate 'CN = a\\nb\\x1b[31m\\u202e' (SHA-256 {'c' * 64}), but" in verdict.message


def test_a_certificate_more_than_needed_does_no_harm() -> None:
    shown = PeerCertificate("c" * 64, "CN = mr")
    assert judge("MODALITY7", "10.1.2.8", certificate=shown) == Admission(
        "MODALITY7", "mr", may_store=True, names=("mr",)
    )


def test_an_admission_carries_what_the_peer_may_store() -> None:
    update = {"sop_classes": ("MRImageStorage",), "transfer_syntaxes": ("RLELossless",)}
    peers = (PEERS[0].model_copy(update=update),)
    caller = Caller(head("MODALITY7"), "10.1.2.8")
    assert admit(Settings(peers=peers), ADDRESSES, caller) == Admission(
        "MODALITY7",
        "mr",
        may_store=True,
        sop_classes=("MRImageStorage",),
        transfer_syntaxes=("RLELossless",),
        names=("mr",),
    )


def test_another_called_ae_title_is_refused() -> None:
    message = "'MODALITY7' at 10.1.2.8 called 'OTHER', but this node is 'DICOMNODE'"
    assert judge("MODALITY7", "10.1.2.8", "OTHER") == Refusal(CALLED, "called AE title", message)
    unchecked = ReceiveSettings(check_called_ae_title=False)
    assert isinstance(judge("MODALITY7", "10.1.2.8", "OTHER", unchecked), Admission)


def test_anybody_means_anybody_with_an_ae_title() -> None:
    anybody = ReceiveSettings(accept="any")
    assert judge("NOBODY", "10.9.9.9", receive=anybody) == Admission("NOBODY", "", may_store=True)
    hostile = "<img src=x>"
    assert judge(hostile, "10.9.9.9", receive=anybody) == Admission(hostile, "", may_store=True)
    assert isinstance(judge("A\\B", "10.9.9.9", receive=anybody), Refusal)
    assert isinstance(judge("NOBODY", "10.9.9.9", "OTHER", anybody), Refusal)


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("10.1.2.8", "10.1.2.8"),
        ("::ffff:10.1.2.8", "10.1.2.8"),
        ("2001:0DB8::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("no address", "no address"),
    ],
)
def test_addresses_are_written_in_one_way(address: str, normal: str) -> None:
    assert normalise_address(address) == normal
