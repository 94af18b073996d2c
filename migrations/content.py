"""Whose the content is, for the versions since 0013, which has it on record."""

import sqlalchemy as sa
from alembic import op


def is_ours(relation: str) -> bool:
    """Whether a version made the relation. If not, it is the application's, and stays as it is."""
    made = sa.text("SELECT is_ours FROM ingest_content WHERE relation = :name")
    return bool(op.get_bind().scalar(made, {"name": relation}))


def lock_questions() -> None:
    """Locks the questions, unless they are the application's."""
    if is_ours("study_questions"):
        op.execute("LOCK TABLE study_questions")
