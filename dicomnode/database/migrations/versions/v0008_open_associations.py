"""Finds the associations that a dead process left open, and the one an instance came by, without reading them all.

Flow: migrations.env > [0008]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

COLUMNS = ("opened_at", "closed_at")


def upgrade() -> None:
    """Go from the revision before to this one."""
    for column in COLUMNS:
        op.create_index(op.f(f"ix_associations_{column}"), "associations", [column])


def downgrade() -> None:
    """Go back to the revision before."""
    for column in COLUMNS:
        op.drop_index(op.f(f"ix_associations_{column}"), table_name="associations")
