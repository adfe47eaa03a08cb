"""The SOP classes and transfer syntaxes the node takes, by UID, with the keyword an administrator may write.

Flow: receive|settings > [uids]
Never: a transfer syntax that a data set could hide a decompression bomb in before it is stored (deflated).
"""

from __future__ import annotations

from collections.abc import Mapping

STORAGE_SOP_CLASSES = {  # PS3.4 table B.5-1, keywords of PS3.6 table A-1
    "1.2.840.10008.5.1.4.1.1.4": "MRImageStorage",
    "1.2.840.10008.5.1.4.1.1.4.1": "EnhancedMRImageStorage",
    "1.2.840.10008.5.1.4.1.1.4.4": "LegacyConvertedEnhancedMRImageStorage",
    "1.2.840.10008.5.1.4.1.1.128": "PositronEmissionTomographyImageStorage",
    "1.2.840.10008.5.1.4.1.1.130": "EnhancedPETImageStorage",
    "1.2.840.10008.5.1.4.1.1.128.1": "LegacyConvertedEnhancedPETImageStorage",
}
# In the order of choice when a peer leaves it to us: what needs no codec first, as every sender has its instances in
# that form or can make it; then by how many senders and readers know the compression.
TRANSFER_SYNTAXES = {  # PS3.5 annex A, keywords of PS3.6 table A-1
    "1.2.840.10008.1.2.1": "ExplicitVRLittleEndian",
    "1.2.840.10008.1.2": "ImplicitVRLittleEndian",
    "1.2.840.10008.1.2.2": "ExplicitVRBigEndian",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessSV1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
    "1.2.840.10008.1.2.5": "RLELossless",
}


def find_keyword(known: Mapping[str, str], value: str) -> str:
    """Return the keyword of a UID or keyword; raises `ValueError`, which says what is known, for any other word."""
    keyword = known.get(value, value)
    if keyword not in known.values():
        raise ValueError(f"known are {', '.join(known.values())}, or their UIDs; this is {value!r}")
    return keyword
