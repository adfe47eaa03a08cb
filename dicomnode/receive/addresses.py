"""Finds which IP addresses the configured peers stand for; a network stands for itself.

Flow: receive.scp > [addresses] > receive.policy
Never: a look-up while a caller waits; names are resolved when the settings are read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from dicomnode.logs import get_logger
from dicomnode.receive.policy import Addresses, normalise_address
from dicomnode.settings import PeerSettings

log = get_logger()


def resolve_peers(peers: Iterable[PeerSettings]) -> Addresses:
    """Return the addresses of each peer's host by the peer's name; none, and a warning, for a name nobody knows."""
    return {peer.name: _resolve(peer) for peer in peers}


def _resolve(peer: PeerSettings) -> frozenset[str]:
    if peer.is_network:
        return frozenset({peer.host})
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.warning("receive.peer_unresolved", peer=peer.name, host=peer.host, error=str(error))
        return frozenset()
    return frozenset(normalise_address(str(address[4][0])) for address in found)
