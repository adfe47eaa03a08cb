"""What an administrator decides about what is kept: for how long, how it is checked, and where it is copied to.

Flow: settings > [settings_keeping] > setting_values
Never: a default that deletes a file: whatever goes was asked for.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dicomnode.setting_values import COUNT_AT_MOST, DAYS_AT_MOST, AbsolutePath, Bytes, Count, Section

Days = Annotated[float, Field(ge=0, le=DAYS_AT_MOST)]  # 0 where there is no bound


class KeepSettings(Section):
    """How much of one kind is kept; the oldest goes first, and 0 is no bound."""

    days: Days = 0.0
    count: Annotated[int, Field(ge=0, le=COUNT_AT_MOST)] = 0
    bytes: Bytes = 0

    @property
    def is_bounded(self) -> bool:
        """Whether anything of this kind ever goes by it."""
        return bool(self.days or self.count or self.bytes)


class RetentionSettings(Section):
    """What is deleted when; no file, unless it is asked for here."""

    hold_hours: Annotated[float, Field(ge=1, le=24 * DAYS_AT_MOST)] = 24.0
    committed_days: Days = 0.0
    history_days: Days = 400.0
    free_start_bytes: Bytes = 0
    free_stop_bytes: Bytes = 0
    paired: KeepSettings = KeepSettings()
    unpaired: KeepSettings = KeepSettings()
    refused: KeepSettings = KeepSettings()
    failed: KeepSettings = KeepSettings()
    outputs: KeepSettings = KeepSettings()
    conflicts: KeepSettings = KeepSettings()

    @model_validator(mode="after")
    def _check_free_bytes(self) -> Self:
        start, stop = self.free_start_bytes, self.free_stop_bytes
        if stop < start or (stop and not start):
            raise ValueError(
                f"free_stop_bytes: {stop} and free_start_bytes = {start}: deleting begins when fewer than the second "
                "are free and ends at the first; set both, the first at least as high"
            )
        return self

    def keep(self, kind: str) -> KeepSettings:
        """Return how much of a kind is kept."""
        kept: KeepSettings = getattr(self, kind)
        return kept

    @property
    def is_asked_for(self) -> bool:
        """Whether any file is ever deleted."""
        return self.free_start_bytes > 0 or any(self.keep(kind).is_bounded for kind in RETENTION_KINDS)


RETENTION_KINDS = tuple(
    name for name, field in RetentionSettings.model_fields.items() if field.annotation is KeepSettings
)


class IntegritySettings(Section):
    """How often, and how gently, stored files are compared with what was written."""

    scan_days: Days = 30.0
    scan_bytes_per_s: Annotated[Bytes, Field(ge=1024)] = 4194304


class BackupSettings(Section):
    """Where backups are made by the node itself, and how many are kept; an empty folder is never."""

    folder: AbsolutePath = ""
    every_hours: Annotated[float, Field(gt=0, le=24 * DAYS_AT_MOST)] = 24.0
    keep: Count = 7
