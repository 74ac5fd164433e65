"""Environment of Alembic's commands: runs the migrations on the workflow database.

`lib.storage.database.Database` passes its connection. On the command line the path of a database is given:
`alembic -x database=STUDIES/.organnet/workflow.sqlite revision --autogenerate --rev-id 0002 -m "what changes"`.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from lib.storage.tables import Base


def run(connection: Connection) -> None:
    """Run the migrations in one transaction; SQLite changes tables by copying them (`batch`)."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    path = context.get_x_argument(as_dictionary=True)["database"]
    with create_engine(f"sqlite:///{path}").begin() as opened:
        run(opened)
