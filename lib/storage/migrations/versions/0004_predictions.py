"""Contours that models drew: their digest, and the summary of each organ."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("image_id", sa.String(200), nullable=False),
        sa.Column("model_version", sa.String(120), nullable=False),
        sa.Column("is_deep", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scan_state", sa.String(64), nullable=False),
        sa.Column("organs", sa.JSON(), nullable=False),
        sa.Column("computed_at", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_predictions_image_id", "predictions", ["image_id"])
