"""Attributes of images and labels, and the record of changes, in place of MONAI Label's index file."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables; the first start reads the attributes from the index file (`lib.labels.attributes`)."""
    op.create_table(
        "image_infos",
        sa.Column("image_id", sa.String(200), primary_key=True),
        sa.Column("info", sa.JSON(), nullable=False),
    )
    op.create_table(
        "label_infos",
        sa.Column(
            "label_version_id", sa.Integer(), sa.ForeignKey("label_versions.id"), primary_key=True
        ),
        sa.Column("info", sa.JSON(), nullable=False),
    )
    op.create_table(
        "image_changes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("image_id", sa.String(200), nullable=False),
        sqlite_autoincrement=True,
    )
