"""In which form an instance is sent: compressed where the destination wants and takes it, else as it was made.

Flow: send/delivery > [copies] > send/scu
Never: an instance held back because its compressed copy is missing or not taken; a copy that nobody has a digest of.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from dicomnode.outputs.compression import SYNTAXES, find_copy_path
from dicomnode.send.pdus import ContextKey
from dicomnode.send.scu import Instance
from dicomnode.setting_values import Compression

Copies = tuple[Instance, ...]  # one instance in the forms it can be sent in, the wanted one first


def find_copies(instance: Instance, compression: Compression, digests: Mapping[str, str] | None) -> Copies:
    """Return the forms an instance can be sent in, the wanted one first and the one it was made in last.

    `digests` are the SHA-256 of its compressed copies, by compression.
    """
    sha256 = (digests or {}).get(compression)
    if compression not in SYNTAXES or sha256 is None:
        return (instance,)
    path = find_copy_path(instance.path, compression)
    copy = replace(instance, transfer_syntax_uid=str(SYNTAXES[compression]), path=path, sha256=sha256)
    return (copy, instance) if path.is_file() else (instance,)


def choose_copy(copies: Copies, accepted: Container[ContextKey]) -> Instance:
    """Return the first form whose presentation context was accepted; the last one where none was."""
    return next((copy for copy in copies if copy.context in accepted), copies[-1])
