"""${message}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Change the schema of revision ${down_revision} to that of ${up_revision}."""
    ${upgrades if upgrades else "pass"}
