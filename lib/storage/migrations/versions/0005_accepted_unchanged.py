"""The model whose contours were accepted unchanged as a label."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column `unchanged_from` of label versions; it is empty for earlier versions."""
    op.add_column("label_versions", sa.Column("unchanged_from", sa.String(120)))
