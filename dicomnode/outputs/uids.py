"""UIDs that follow from what an object is made of, so that a repeated job makes the same objects.

Flow: request > [uids] > modules
Never: a random or clock-made UID; any other module making one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from uuid import UUID, uuid5

from pydicom.uid import UID

# Drawn once for this software and never changed: every UID of ours hangs below it.
NAMESPACE = UUID("6f1a3c52-0d4e-4a7b-9c41-5b8e2f7d9a10")


def make_fingerprint(parts: Iterable[str]) -> str:
    """Return the SHA-256 of all parts in their order, in hexadecimal; no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def make_uid(*parts: str) -> UID:
    """Return the UID below 2.25 (PS3.5 B.2) that these parts, and no others, lead to."""
    return UID(f"2.25.{uuid5(NAMESPACE, make_fingerprint(parts)).int}")
