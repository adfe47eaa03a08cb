"""What is deleted and why, which files are damaged, and how far what goes on for ever has come.

Flow: migrations.env > [0005]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Go from the revision before to this one."""
    op.add_column("outputs", sa.Column("copies", sa.JSON(), nullable=True))
    op.add_column("outputs", sa.Column("deleted_at", sa.Double(), nullable=True))
    _make_deletions()
    op.create_table(
        "damages",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=True),
        sa.Column("output_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("found_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_damages_instance_id")),
        sa.ForeignKeyConstraint(["output_id"], ["outputs.id"], name=op.f("fk_damages_output_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_damages")),
        sa.UniqueConstraint("instance_id", name=op.f("uq_damages_instance_id")),
        sa.UniqueConstraint("output_id", name=op.f("uq_damages_output_id")),
    )
    op.create_table(
        "marks",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False, server_default="0"),
        sa.Column("position", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_marks")),
    )


def downgrade() -> None:
    """Go back to the revision before."""
    op.drop_table("marks")
    op.drop_table("damages")
    with op.batch_alter_table("doomed_files", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_doomed_files_deletion_id"))
    op.drop_table("doomed_files")
    op.drop_table("deletions")
    op.drop_column("outputs", "deleted_at")
    op.drop_column("outputs", "copies")


def _make_deletions() -> None:
    op.create_table(
        "deletions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.Double(), nullable=False),
        sa.Column("done_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletions")),
    )
    op.create_table(
        "doomed_files",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("deletion_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["deletion_id"], ["deletions.id"], name=op.f("fk_doomed_files_deletion_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_doomed_files")),
        sa.UniqueConstraint("path", name=op.f("uq_doomed_files_path")),
    )
    with op.batch_alter_table("doomed_files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_doomed_files_deletion_id"), ["deletion_id"], unique=False)
