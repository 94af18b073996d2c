"""Titles and texts of questions, for pages that people read.

They are not columns of `study_questions`, because ingest reads that table for every answer, and
because it may belong to the study application. The table is new, so nobody waits for this.
"""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE study_question_texts ("
        " study_question_id bigint NOT NULL CONSTRAINT study_question_texts_pkey PRIMARY KEY,"
        " title text, text text)"
    )


def downgrade() -> None:
    op.execute("DROP TABLE study_question_texts")
