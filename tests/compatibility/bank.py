"""The study application's rows for the recorded batches. Never change a line; only add lines."""

from typing import Final

ROWS: Final = """
INSERT INTO study_topics (id, user_id) VALUES (10, 1), (20, 1), (30, 2);
INSERT INTO study_questions (id, user_id, study_topic_id, correct_choice, deleted_at) VALUES
    (101, 1, 10, 1, NULL), (102, 1, 10, 2, NULL), (103, 1, 10, 3, NULL),
    (201, 1, 20, 1, NULL), (202, 1, 20, 0, '2024-01-01T00:00:00Z'), (203, 1, 20, -5, NULL),
    (301, 2, 30, 1, NULL);
INSERT INTO published (pub_id, kind, source_id, deleted) VALUES
    ('q-101', 'question', 101, false), ('q-102', 'question', 102, false),
    ('q-103', 'question', 103, false), ('q-201', 'question', 201, false),
    ('q-202', 'question', 202, false), ('q-203', 'question', 203, true),
    ('q-301', 'question', 301, false), ('t-10', 'topic', 10, false),
    ('frage-ü-你好', 'question', 201, false)
"""
