"""A Storage SCU that sends whatever bytes it is given, right or wrong, and tells the answers.

Flow: tests > [raw_scu] > pynetdicom
Never: a check of what is sent (`Association.send_c_store` refuses what a test must send).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from io import BytesIO
from types import TracebackType
from typing import Any, Self, cast

from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_RJ

from tests.peers_programs import LOOPBACK
from tests.receiving import MR

ANSWER_TIMEOUT_S = 30.0


class RawScu:
    """One association inside the `with` block; `is_established` tells whether it was accepted."""

    def __init__(
        self,
        port: int,
        *,
        calling: str = "SCANNER",
        called: str = "DICOMNODE",
        contexts: Sequence[tuple[str, Sequence[str]]] = ((MR, (ExplicitVRLittleEndian,)),),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._entity = AE(calling)
        self._entity.acse_timeout = self._entity.dimse_timeout = ANSWER_TIMEOUT_S
        for sop_class_uid, syntaxes in contexts:
            self._entity.add_requested_context(sop_class_uid, list(syntaxes))
        self._port, self._called = port, called
        self._tls = None if tls is None else (tls, LOOPBACK)
        self._message_id = 0
        self._rejections: list[A_ASSOCIATE_RJ] = []  # pynetdicom forgets one when it sees the closed connection first

    def __enter__(self) -> Self:
        self.association: Association = self._entity.associate(
            LOOPBACK,
            self._port,
            ae_title=self._called,
            tls_args=self._tls,
            evt_handlers=[(evt.EVT_PDU_RECV, self._note_rejection)],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_established:
            self.association.release()

    @property
    def is_established(self) -> bool:
        """Whether the association is up."""
        return self.association.is_established

    @property
    def rejection(self) -> tuple[int, int, int]:
        """Result, source and reason of A-ASSOCIATE-RJ: PS3.8 table 9-21."""
        [answer] = self._rejections
        return cast(tuple[int, int, int], (answer.result, answer.source, answer.reason_diagnostic))

    def _note_rejection(self, event: Any) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            self._rejections.append(event.pdu)

    def accepted(self) -> dict[str, str]:
        """Return the transfer syntax that was accepted for each SOP class."""
        contexts = self.association.accepted_contexts
        return {str(context.abstract_syntax): str(context.transfer_syntax[0]) for context in contexts}

    def store(self, sop_class_uid: str, sop_instance_uid: str, data: bytes, context: int = 0) -> int | None:
        """Send a C-STORE in the accepted presentation context of this number; None when no answer comes."""
        self._message_id += 1
        request = C_STORE()
        request.MessageID = self._message_id
        request.AffectedSOPClassUID = UID(sop_class_uid)
        request.AffectedSOPInstanceUID = UID(sop_instance_uid)
        request.Priority = 2
        request.DataSet = BytesIO(data)
        self._pause()
        try:
            context_id = cast(int, self.association.accepted_contexts[context].context_id)
            self.association.dimse.send_msg(request, context_id)
            _, answer = self.association.dimse.get_msg(block=True)
        finally:
            self.association._reactor_checkpoint.set()
        return None if answer is None else cast(C_STORE, answer).Status

    def _pause(self) -> None:
        """Keep pynetdicom's own loop from taking the answer, as `send_c_store` does.

        That may find it paused still from the time before, and then lose the answer to it: here it goes on first.
        """
        while self.association._is_paused and self.association.is_alive():
            time.sleep(0.0001)
        self.association._reactor_checkpoint.clear()
        while not self.association._is_paused:
            time.sleep(0.0001)
