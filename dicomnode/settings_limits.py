"""What an administrator lets one peer, or all together, take.

Flow: settings > [settings_limits] > setting_values
Never: a limit without a counter (`dicomnode/metrics.py`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dicomnode.setting_values import Bytes, Count, Seconds, Section

NESTING_DEPTH_MAX = 1000  # what was taken under any setting is understood again


class LimitSettings(Section):
    """What one peer, or all together, may take."""

    associations: Annotated[int, Field(ge=1, le=1000)] = 100
    associations_per_peer: Annotated[int, Field(ge=1, le=1000)] = 50
    associations_per_minute: Count = 3000
    association_instances: Count = 100000
    association_bytes: Annotated[Bytes, Field(ge=1048576)] = 68719476736
    commitment_instances: Annotated[int, Field(ge=1, le=1000000)] = 100000
    waiting_connections: Annotated[int, Field(ge=1, le=1000)] = 100
    associate_bytes: Annotated[int, Field(ge=4096, le=1048576)] = 262144
    pdu_bytes: Annotated[int, Field(ge=4096, le=1048576)] = 131072
    pdu_s: Seconds = 30.0
    data_set_bytes: Annotated[Bytes, Field(ge=1024)] = 1073741824
    data_set_s: Seconds = 900.0
    memory_bytes: Annotated[Bytes, Field(ge=1024)] = 2147483648
    nesting_depth: Annotated[int, Field(ge=1, le=NESTING_DEPTH_MAX)] = 64
    idle_s: Seconds = 60.0
    disk_reserve_bytes: Bytes = 1073741824
    shutdown_s: Seconds = 20.0
