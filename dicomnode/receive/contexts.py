"""What the SCP offers to negotiate: C-ECHO, and the storage classes in the transfer syntaxes that the node takes.

Flow: receive.scp > [contexts] > sop_classes
Never: an abstract or transfer syntax that nothing here handles.
"""

from __future__ import annotations

from pynetdicom.presentation import PresentationContext, build_context

from dicomnode.sop_classes import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 annex A


def make_contexts() -> list[PresentationContext]:
    """Return what the SCP supports: C-ECHO and the storage classes."""
    uncompressed = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    storage = [build_context(uid, list(TRANSFER_SYNTAXES)) for uid in STORAGE_SOP_CLASSES]
    return [build_context(VERIFICATION, uncompressed), *storage]
