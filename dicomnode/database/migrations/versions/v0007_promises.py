"""What peers were told is kept safe.

Flow: migrations.env > [0007]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

PROMISED = ("instances", "outputs")


def upgrade() -> None:
    """Go from the revision before to this one."""
    for table in PROMISED:
        # Not in a batch, which would make the table anew: others refer to its rows.
        op.add_column(table, sa.Column("committed_at", sa.Double(), nullable=True))
    # What was reported was not noted: what was asked for counts as promised, then.
    op.execute("UPDATE instances SET committed_at = commitment_requested_at WHERE commitment_requested_at IS NOT NULL")


def downgrade() -> None:
    """Go back to the revision before."""
    for table in reversed(PROMISED):
        op.drop_column(table, "committed_at")
