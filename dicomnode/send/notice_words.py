"""What a notice says: how many of what need a person, which, and the command to type.

Flow: database/notices > [notice_words] > send/webhook, send/mail
Never: a clock, a socket; a patient's identity, a description, a UID, a peer's own words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dicomnode.database.notices import Notice


@dataclass(frozen=True)
class Words:
    """What befell one, what befell several, and what to do."""

    one: str
    several: str
    command: str


KINDS: Mapping[str, Words] = {
    "review": Words(
        "waits for a person",
        "wait for a person",
        "dicomnode jobs list --state review; dicomnode pairs list --state held",
    ),
    "job_failed": Words("failed", "failed", "dicomnode jobs list --state failed"),
    "delivery_dead": Words("cannot be delivered", "cannot be delivered", "dicomnode outbox list --state dead"),
    "not_committed": Words(
        "was sent, and the destination does not say that it keeps it",
        "were sent, and the destinations do not say that they keep them",
        "dicomnode doctor; dicomnode outbox list --state sent",
    ),
    "disk": Words("cannot be written, or has too little room", "cannot be written", "dicomnode doctor"),
    "database": Words("does not answer", "do not answer", "dicomnode doctor"),
    "certificate": Words("runs out soon, or is not valid", "run out soon, or are not valid", "dicomnode doctor"),
    "test": Words("is a test", "are a test", "nothing"),
}


@dataclass(frozen=True)
class Message:
    """One notice as it is sent; `number` tells it from others of this node, `first_at` in UTC epoch seconds."""

    number: str
    node: str  # its AE title
    kind: str
    count: int
    subjects: tuple[str, ...]
    first_at: float

    @property
    def text(self) -> str:
        """One sentence: job 7, job 8 and 3 more failed."""
        words = KINDS[self.kind]
        others = self.count - len(self.subjects)
        named = ", ".join(self.subjects) + (f" and {others} more" if others else "")
        return f"{named} {words.one if self.count == 1 else words.several}"

    @property
    def command(self) -> str:
        """What to type at the node."""
        return KINDS[self.kind].command


def make_message(notice: Notice, ae_title: str) -> Message:
    """Return what a notice says."""
    return Message(str(notice.id), ae_title, notice.kind, notice.count, notice.subjects, notice.first_at)


def encode_json(message: Message) -> bytes:
    """Return the body of a webhook."""
    fields = {
        "notice": message.number,
        "node": message.node,
        "kind": message.kind,
        "count": message.count,
        "subjects": list(message.subjects),
        "first_at": show_instant(message.first_at),
        "text": message.text,
        "command": message.command,
    }
    return json.dumps(fields, ensure_ascii=True).encode("ascii")


def show_instant(at: float) -> str:
    """Return UTC epoch seconds as ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
