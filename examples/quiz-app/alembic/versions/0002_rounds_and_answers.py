"""Rounds and their answers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("topic_id", sa.Uuid(), sa.ForeignKey("study_topics.id"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_rounds_user_id", "rounds", ["user_id"])
    op.create_table(
        "answers",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("round_id", sa.Uuid(), sa.ForeignKey("rounds.id"), nullable=False),
        sa.Column("question_id", sa.Uuid(), sa.ForeignKey("questions.id"), nullable=False),
        sa.Column("choice", sa.Integer()),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_answers_round_id", "answers", ["round_id"])


def downgrade() -> None:
    op.drop_table("answers")
    op.drop_table("rounds")
