"""Puts our upper layer in the place of pynetdicom's, under an association that is about to start.

Flow: receive.associations > [attaching] > receive.upper_layer
Never: a change of what pynetdicom answers; a wait of its own.
"""

from __future__ import annotations

import socket

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import DimseServiceType

from dicomnode.receive.connection import Connection
from dicomnode.receive.service import Service
from dicomnode.receive.upper_layer import UpperLayer
from dicomnode.receive.usage import Usage


class Dimse(DIMSEServiceProvider):
    """Gives messages to the association's loop, which waits here instead of asking each millisecond."""

    def get_msg(
        self,
        block: bool = False,  # noqa: ARG002, FBT001  pynetdicom fixes the signature
    ) -> tuple[int, DimseServiceType] | tuple[None, None]:
        """Return the next message that is pynetdicom's to answer, if there is one."""
        dul = self.dul
        assert isinstance(dul, UpperLayer)  # noqa: S101  `attach` sets both
        dul.wait_for_user()
        return super().get_msg(block=False)


def attach(association: Association, client: socket.socket, usage: Usage, service: Service) -> UpperLayer:
    """Put this upper layer in the place of pynetdicom's, before the association starts; a TLS handshake is over."""
    association.dul = upper_layer = UpperLayer(association, usage, service)
    association.dimse = Dimse(association)
    association.acse_timeout = association.acse_timeout  # the timer stands in the upper layer
    association.set_socket(Connection(association, client, usage.limits.pdu_s, upper_layer.note_unread))
    return upper_layer
