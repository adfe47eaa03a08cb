"""Runs the revisions on the connection that `migrate` hands over; Alembic executes this file.

Flow: database.migrate > [env] > versions
Never: a connection of its own, an ini file.
"""

from __future__ import annotations

from alembic import context

from dicomnode.database.schema import metadata

# Batches rebuild a table where SQLite cannot alter it; the whole upgrade is one transaction on both databases.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
