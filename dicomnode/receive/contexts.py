"""Which presentation contexts a peer may have: nothing else is accepted from it.

Flow: receive.scp, receive.associations > [contexts] > uids
Never: a SOP class or transfer syntax that the node does not store, whatever a peer's settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.commitment import ENCODINGS, PUSH_MODEL
from dicomnode.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 annex A
UID_CHARACTERS_MAX = 64  # PS3.5 9.1
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def make_contexts(sop_classes: Sequence[str] = (), transfer_syntaxes: Sequence[str] = ()) -> list[PresentationContext]:
    """Return C-ECHO, storage commitment and the storage classes, those of these keywords only where there are any."""
    syntaxes = _select(TRANSFER_SYNTAXES, transfer_syntaxes)
    storage = [build_context(uid, syntaxes) for uid in _select(STORAGE_SOP_CLASSES, sop_classes)]
    commitment = build_context(PUSH_MODEL, list(ENCODINGS))
    # Who asks us is the SCU there, who reports to us the SCP, over an association of its own (PS3.4 J.3.3).
    commitment.scu_role = commitment.scp_role = True
    return [build_context(VERIFICATION, list(UNCOMPRESSED)), commitment, *storage]


def find_unknown(offered: Iterable[PresentationContext]) -> list[str]:
    """Say which contexts this node takes from nobody, each once: by its SOP class, or by all its transfer syntaxes."""
    known, unknown = _list_known(), dict[str, None]()
    for context in offered:
        sop_class, syntaxes = UID(context.abstract_syntax or ""), context.transfer_syntax
        if sop_class not in known:
            unknown[_name(sop_class)] = None
        elif known[sop_class].isdisjoint(syntaxes):
            unknown[f"{_name(sop_class)} in {' or '.join(map(_name, syntaxes)) or 'no transfer syntax'}"] = None
    return list(unknown)


def find_kept_out(
    offered: Iterable[PresentationContext], sop_classes: Sequence[str], transfer_syntaxes: Sequence[str]
) -> list[str]:
    """Say which contexts that the node knows a peer's own settings keep out, each once."""
    syntaxes = set(_select(TRANSFER_SYNTAXES, transfer_syntaxes))
    kept_out: dict[str, None] = {}
    for context in offered:
        keyword = STORAGE_SOP_CLASSES.get(str(context.abstract_syntax))
        known = [str(syntax) for syntax in context.transfer_syntax if str(syntax) in TRANSFER_SYNTAXES]
        if keyword is None or not known:
            continue
        if sop_classes and keyword not in sop_classes:
            kept_out[keyword] = None
        elif not syntaxes.intersection(known):
            kept_out[f"{keyword} in {' or '.join(TRANSFER_SYNTAXES[syntax] for syntax in known)}"] = None
    return list(kept_out)


@lru_cache(maxsize=1)
def _list_known() -> Mapping[str, frozenset[str]]:
    """Return the transfer syntaxes that this node takes, by SOP class."""
    return {str(context.abstract_syntax): frozenset(context.transfer_syntax) for context in make_contexts()}


def _name(uid: UID) -> str:
    """Return the keyword of a UID of the standard's; another, which may be of any characters, as it is, but short."""
    return uid.keyword or ascii(uid[:UID_CHARACTERS_MAX])


def _select(known: Mapping[str, str], keywords: Sequence[str]) -> list[str]:
    return [uid for uid, keyword in known.items() if not keywords or keyword in keywords]
