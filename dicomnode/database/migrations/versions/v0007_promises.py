"""What peers were told is kept safe, and whose storage commitment messages are refused.

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
    op.create_table(
        "commitment_refusals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("calling_ae", sa.String(length=16), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment_refusals")),
        sa.UniqueConstraint(
            "calling_ae", "address", "kind", name=op.f("uq_commitment_refusals_calling_ae_address_kind")
        ),
    )
    # What was reported was not noted: what was asked for counts as promised, then.
    op.execute("UPDATE instances SET committed_at = commitment_requested_at WHERE commitment_requested_at IS NOT NULL")


def downgrade() -> None:
    """Go back to the revision before."""
    op.drop_table("commitment_refusals")
    for table in reversed(PROMISED):
        op.drop_column(table, "committed_at")
