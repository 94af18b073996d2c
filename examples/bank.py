"""Two questions of user 42, for trying things out: question-1 (choice 2 is right) and question-2
(1).

This stands in for the study application, which owns these tables. It can be run again.

    ./dev run -- python examples/bank.py
"""

import asyncio
import os

import asyncpg

_BANK = """
    INSERT INTO study_topics (id, user_id, name) VALUES (420, 42, 'A first topic')
        ON CONFLICT DO NOTHING;
    INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice)
        VALUES (4201, 42, 420, 2), (4202, 42, 420, 1) ON CONFLICT DO NOTHING;
    INSERT INTO published (pub_id, kind, source_id)
        VALUES ('question-1', 'question', 4201), ('question-2', 'question', 4202)
        ON CONFLICT DO NOTHING;
"""


async def main() -> None:
    """Writes the questions into the database at INGEST_DATABASE_URL."""
    connection = await asyncpg.connect(os.environ["INGEST_DATABASE_URL"])
    try:
        await connection.execute(_BANK)
    finally:
        await connection.close()


asyncio.run(main())
