"""A job may follow another with another profile; an output counts how often it came back.

Flow: migrations.env > [0003]
Never: an import of schema.py; a revision stays what it was when the schema goes on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Go from the revision before to this one."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("profile", sa.String(16), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("reprocess_of", sa.Integer(), nullable=True))
        batch_op.create_foreign_key("fk_jobs_reprocess_of", "jobs", ["reprocess_of"], ["id"])
    with op.batch_alter_table("outputs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("returned", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Go back to the revision before."""
    with op.batch_alter_table("outputs", schema=None) as batch_op:
        batch_op.drop_column("returned")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_constraint("fk_jobs_reprocess_of", type_="foreignkey")
        batch_op.drop_column("reprocess_of")
        batch_op.drop_column("profile")
