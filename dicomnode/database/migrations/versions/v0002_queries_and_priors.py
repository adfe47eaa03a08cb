"""What peers are asked, the priors they have, and from what a series was judged complete.

Flow: migrations.env > [0002]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Go from the revision before to this one."""
    op.add_column("series", sa.Column("completed_by", sa.Text(), nullable=False, server_default=""))
    op.add_column("series", sa.Column("source_count", sa.Integer(), nullable=True))
    op.add_column("instances", sa.Column("commitment_requested_at", sa.Double(), nullable=True))
    op.add_column("pairs", sa.Column("is_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
    _make_priors()
    _make_queries()


def downgrade() -> None:
    """Go back to the revision before."""
    with op.batch_alter_table("queries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_queries_state"))
        batch_op.drop_index(batch_op.f("ix_queries_series_id"))

    op.drop_table("queries")
    with op.batch_alter_table("priors", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_priors_series_uid"))

    op.drop_table("priors")
    op.drop_column("pairs", "is_requested")
    op.drop_column("instances", "commitment_requested_at")
    op.drop_column("series", "source_count")
    op.drop_column("series", "completed_by")


def _make_priors() -> None:
    op.create_table(
        "priors",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.Integer(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.String(length=16), nullable=False),
        sa.Column("study_time", sa.String(length=16), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_priors_series_id")),
        sa.ForeignKeyConstraint(["patient_id"], ["patients.id"], name=op.f("fk_priors_patient_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_priors")),
        sa.UniqueConstraint("series_id", "peer", "series_uid", name=op.f("uq_priors_series_id_peer_series_uid")),
    )
    with op.batch_alter_table("priors", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_priors_series_uid"), ["series_uid"], unique=False)


def _make_queries() -> None:
    op.create_table(
        "queries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("prior_id", sa.Integer(), nullable=True),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_queries_series_id")),
        sa.ForeignKeyConstraint(["prior_id"], ["priors.id"], name=op.f("fk_queries_prior_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queries")),
    )
    with op.batch_alter_table("queries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_queries_series_id"), ["series_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_queries_state"), ["state"], unique=False)
