"""Users, topics and questions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column(
            "signed_up_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
        ),
    )
    op.create_table(
        "study_topics",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("slug", sa.String(), nullable=False, unique=True),
        sa.Column("title", sa.String(), nullable=False),
    )
    op.create_table(
        "questions",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("topic_id", sa.Uuid(), sa.ForeignKey("study_topics.id"), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("choices", JSONB(), nullable=False),
        sa.Column("answer", sa.Integer(), nullable=False),
    )
    op.create_index("ix_questions_topic_id", "questions", ["topic_id"])


def downgrade() -> None:
    for table in ("questions", "study_topics", "users"):
        op.drop_table(table)
