"""The differences between a label as it was sent and as it is stored."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column `changes` of label versions; it is empty for earlier versions."""
    column = sa.Column("changes", sa.JSON(), nullable=False, server_default=sa.text("'[]'"))
    op.add_column("label_versions", column)
