"""Which SOP classes and transfer syntaxes the node takes: nothing else is advertised, and nothing else is fetched.

Flow: receive, send > [sop_classes]
Never: a transfer syntax that a data set could hide a decompression bomb in before it is stored (deflated).
"""

from __future__ import annotations

STORAGE_SOP_CLASSES = {  # PS3.4 table B.5-1
    "1.2.840.10008.5.1.4.1.1.4": "MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.128": "Positron Emission Tomography Image Storage",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET Image Storage",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET Image Storage",
}
# In the order of choice when a peer leaves it to us: what needs no codec first, as every sender has its instances in
# that form or can make it; then by how many senders and readers know the compression.
TRANSFER_SYNTAXES = {  # PS3.5 annex A
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, Non-Hierarchical, First-Order Prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
