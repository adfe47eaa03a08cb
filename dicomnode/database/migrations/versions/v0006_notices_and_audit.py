"""What people are to be told, and the spool of the audit trail.

Flow: migrations.env > [0006]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

AUDITED = ("associations", "outbox")


def upgrade() -> None:
    """Go from the revision before to this one."""
    for table in AUDITED:
        # Not in a batch, which would make the table anew: others refer to its rows.
        op.add_column(table, sa.Column("is_audited", sa.Boolean(), nullable=False, server_default=sa.false()))
        op.create_index(f"ix_{table}_is_audited", table, ["is_audited"])
    _create_notices()
    op.create_table(
        "audit_messages",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
    )
    op.create_index("ix_audit_messages_channel", "audit_messages", ["channel"])
    op.create_table(
        "audit_channels",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
    )


def _create_notices() -> None:
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
    )
    op.create_index("ix_notices_state", "notices", ["state"])
    op.create_index("ix_notices_channel_kind", "notices", ["channel", "kind"])
    op.create_table(
        "notice_causes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("occurrence", sa.Double(), nullable=False),
        sa.Column("noticed_at", sa.Double(), nullable=False),
        sa.Column(
            "notice_id", sa.Integer(), sa.ForeignKey("notices.id", name="fk_notice_causes_notice_id"), nullable=True
        ),
        sa.UniqueConstraint(
            "channel", "kind", "subject", "occurrence", name="uq_notice_causes_channel_kind_subject_occurrence"
        ),
    )
    op.create_index("ix_notice_causes_notice_id", "notice_causes", ["notice_id"])


def downgrade() -> None:
    """Go back to the revision before."""
    for table in ("audit_channels", "audit_messages", "notice_causes", "notices"):
        op.drop_table(table)
    for table in reversed(AUDITED):
        op.drop_index(f"ix_{table}_is_audited", table)
        op.drop_column(table, "is_audited")
