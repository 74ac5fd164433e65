"""Images that users marked as unsuitable."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "unsuitable_images",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("image_id", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("marked_at", sa.DateTime(), nullable=False),
        sa.Column("undone_by", sa.String(200)),
        sa.Column("undone_at", sa.DateTime()),
    )
    op.create_index("ix_unsuitable_images_image_id", "unsuitable_images", ["image_id"])
