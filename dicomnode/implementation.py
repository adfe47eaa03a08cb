"""How this software names itself to peers and in files.

Flow: receive|outputs|send > [implementation]
Never: behaviour; a UID of an instance (`outputs` makes those).
"""

from __future__ import annotations

# PS3.7 D.3.3.2; a UUID-derived UID (PS3.5 B.2), made once for this software and never changed.
IMPLEMENTATION_CLASS_UID = "2.25.263921410633547897024684029793669897027"
IMPLEMENTATION_VERSION_NAME = "DICOMNODE"  # VR SH, at most 16 characters
