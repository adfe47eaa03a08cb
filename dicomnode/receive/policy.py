"""Decides who may associate and who may store: a function of the settings and of what a caller says.

Flow: receive.associations > [policy] > receive.pdus, settings, tls
Never: a socket, a name look-up, a log; a hostile AE title unescaped in a message.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from dicomnode.certificates import PeerCertificate
from dicomnode.receive.pdus import APPLICATION_CONTEXT, PROTOCOL_VERSION, RequestHead
from dicomnode.setting_values import check_ae_title
from dicomnode.settings import PeerSettings, Settings
from dicomnode.status import AcseReason, RejectReason
from dicomnode.tls import is_proven, show_needed_certificate

# By the name of the peer: the IP addresses its host stands for, or the network it calls from.
Addresses = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Caller:
    """Who asks for an association: what the request begins with, and where it came from."""

    head: RequestHead
    address: str
    certificate: PeerCertificate | None = None  # None without TLS too


@dataclass(frozen=True)
class Admission:
    """The caller may associate and C-ECHO, and perhaps store."""

    ae_title: str
    peer: str  # the name of the configured peer; empty when anybody is accepted
    may_store: bool
    sop_classes: tuple[str, ...] = ()  # empty: all that the node takes
    transfer_syntaxes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of every configured peer that the caller is by AE title, address and certificate


@dataclass(frozen=True)
class Refusal:
    """The caller is refused for good by a rule (PS3.8 9.3.4), with the words for our log."""

    reason: RejectReason | AcseReason
    rule: str
    message: str


def admit(settings: Settings, addresses: Addresses, caller: Caller) -> Admission | Refusal:
    """Judge an association request.

    Parameters
    ----------
    addresses : mapping
        The IP addresses or the network of each peer's host, by the peer's name.
    """
    refusal = _check_head(settings, caller)
    if refusal is not None:
        return refusal
    found = _admit_configured(settings.peers, addresses, caller)
    if settings.receive.accept == "any":
        names = found.names if isinstance(found, Admission) else ()
        return Admission(caller.head.calling_ae, "", may_store=True, names=names)
    return found


def normalise_address(address: str) -> str:
    """Write an IP address in one way: an IPv4 address mapped into IPv6 as IPv4, others in canonical form."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _check_head(settings: Settings, caller: Caller) -> Refusal | None:
    """Judge protocol version, application context and AE titles."""
    head = caller.head
    called, calling = head.called_ae, head.calling_ae
    if not head.protocol_version & PROTOCOL_VERSION:
        return Refusal(
            AcseReason.PROTOCOL_VERSION_NOT_SUPPORTED,
            "protocol version",
            f"{calling!a} at {caller.address} speaks none but other versions ({head.protocol_version:04X}) of the "
            f"DICOM upper layer, version 1 ({PROTOCOL_VERSION:04X}) is needed",
        )
    if head.application_context != APPLICATION_CONTEXT:
        return Refusal(
            RejectReason.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED,
            "application context",
            f"{calling!a} at {caller.address} asked for the application context {head.application_context!a}, "
            f"DICOM's is {APPLICATION_CONTEXT}",
        )
    if settings.receive.check_called_ae_title and called != settings.node.ae_title:
        return Refusal(
            RejectReason.CALLED_AE_TITLE_NOT_RECOGNISED,
            "called AE title",
            f"{calling!a} at {caller.address} called {called!a}, but this node is {settings.node.ae_title!a}",
        )
    if problem := _find_title_problem(called):
        message = f"{calling!a} at {caller.address} called {called!a}: {problem}"
        return Refusal(RejectReason.CALLED_AE_TITLE_NOT_RECOGNISED, "called AE title", message)
    if problem := _find_title_problem(calling):
        message = f"{caller.address} called us as {calling!a}: {problem}"
        return Refusal(RejectReason.CALLING_AE_TITLE_NOT_RECOGNISED, "calling AE title", message)
    return None


def _find_title_problem(title: str) -> str:
    """Say what is wrong with an AE title; empty where nothing is."""
    try:
        check_ae_title(title)
    except ValueError as error:
        return str(error)
    return ""


def _admit_configured(peers: tuple[PeerSettings, ...], addresses: Addresses, caller: Caller) -> Admission | Refusal:
    calling, address = caller.head.calling_ae, normalise_address(caller.address)
    namesakes = [peer for peer in peers if peer.ae_title == calling]
    if not namesakes:
        return Refusal(
            RejectReason.CALLING_AE_TITLE_NOT_RECOGNISED,
            "configured peers",
            f"{calling!a} called us from {address}, but no configured peer has this AE title",
        )
    here = [peer for peer in namesakes if _is_within(address, addresses.get(peer.name, frozenset()))]
    if not here:
        known = ", ".join(_where(peer, addresses) for peer in namesakes)
        return Refusal(
            RejectReason.CALLING_AE_TITLE_NOT_RECOGNISED,
            "address of the peer",
            f"{calling!a} called us from {address}, but is configured at {known}",
        )
    proven = [peer for peer in here if is_proven(peer, caller.certificate)]
    if not proven:
        shown = "without a certificate" if caller.certificate is None else f"with the certificate {caller.certificate}"
        needed = ", ".join(f"{show_needed_certificate(peer)} (peer {peer.name})" for peer in here)
        return Refusal(
            RejectReason.CALLING_AE_TITLE_NOT_RECOGNISED,
            "certificate of the peer",
            f"{calling!a} called us from {address} {shown}, but is configured with {needed}",
        )
    peer = next((peer for peer in proven if "store" in peer.may), proven[0])
    names = tuple(one.name for one in proven)
    return Admission(calling, peer.name, "store" in peer.may, peer.sop_classes, peer.transfer_syntaxes, names)


def _is_within(address: str, places: frozenset[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(place) for place in places)


def _where(peer: PeerSettings, addresses: Addresses) -> str:
    found = sorted(addresses.get(peer.name, frozenset()))
    if found == [peer.host]:
        return f"{peer.host} (peer {peer.name})"
    return f"{peer.host} = {', '.join(found) or 'no known address'} (peer {peer.name})"
