"""Finds which IP addresses the configured peers stand for; a network stands for itself.

Flow: receive.scp > [addresses] > receive.policy
Never: a look-up while a caller waits; a peer shut out because a name server that knew it does not answer now.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from dicomnode.logs import get_logger
from dicomnode.receive.policy import Addresses, normalise_address
from dicomnode.settings import PeerSettings

log = get_logger()


def resolve_peers(peers: Iterable[PeerSettings], known: Addresses | None = None) -> Addresses:
    """Return the addresses of each peer's host by the peer's name; none, and a warning, for a name nobody knows.

    Parameters
    ----------
    known : Addresses, optional
        What the last look-up for the same peers found: it holds where this one finds nothing.
    """
    found = {peer.name: _resolve(peer, is_told=known is not None) for peer in peers}
    if known is None:
        return found
    for name, addresses in found.items():
        if addresses and addresses != known[name]:
            log.info("receive.peer_resolved", peer=name, addresses=sorted(addresses))
    return {name: addresses or known[name] for name, addresses in found.items()}


def _resolve(peer: PeerSettings, *, is_told: bool) -> frozenset[str]:
    if peer.is_network:
        return frozenset({peer.host})
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if not is_told:
            log.warning("receive.peer_unresolved", peer=peer.name, host=peer.host, error=str(error))
        return frozenset()
    return frozenset(normalise_address(str(address[4][0])) for address in found)
