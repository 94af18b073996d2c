"""The tables as this version of the worker uses them, with the constraints that carry meaning.

Migrations create the tables, and a test compares the two. Triggers of migration 0005 check what the
log refers to: the topic of a session, and the session and the question of an attempt. Users, topics
and questions have ids (bigint) of the study application. This project creates none of those.
"""

from typing import Final

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from schemas import amqp

METADATA: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

_TIME = DateTime(timezone=True)
_OUTCOMES = "('correct', 'wrong', 'unsure')"

published = Table(
    "published",
    METADATA,
    Column("pub_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("source_id", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint("length(pub_id) BETWEEN 1 AND 128", name="pub_id_length"),
    Index("published_source_id_idx", "source_id", postgresql_where=text("kind = 'question'")),
)

study_topics = Table(
    "study_topics",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    # Empty for what many users share; so it is for a question.
    Column("user_id", BigInteger),
    Column("name", Text, nullable=False, server_default=""),
)

study_questions = Table(
    "study_questions",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("user_id", BigInteger),
    Column("study_topic_id", BigInteger, ForeignKey("study_topics.id"), nullable=False),
    Column("correct_choice", Integer, nullable=False),
    Column("deleted_at", _TIME),
    Index(None, "study_topic_id"),
)

# Which of the three above a migration has made; the others are the application's.
ingest_content = Table(
    "ingest_content",
    METADATA,
    Column("relation", Text, primary_key=True),
    Column("is_ours", Boolean, nullable=False),
)

study_question_texts = Table(
    "study_question_texts",
    METADATA,
    # autoincrement is off, because these are the ids of questions.
    Column("study_question_id", BigInteger, primary_key=True, autoincrement=False),
    Column("title", Text),
    Column("text", Text),
)

study_quiz_sessions = Table(
    "study_quiz_sessions",
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("study_topic_id", BigInteger, nullable=False),
    Column("question_ids", JSONB, nullable=False),
    Column("subject_distribution", JSONB, nullable=False),
    Column("status", Text, nullable=False),
    Column("cursor", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("client_session_uuid", Uuid, nullable=False),
    Column("correct_count", Integer, nullable=False),
    Column("wrong_count", Integer, nullable=False),
    Column("unsure_count", Integer, nullable=False),
    Column("finished_at", _TIME, nullable=False),
    Column("finalized_at", _TIME, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=func.now()),
    Column("updated_at", _TIME, nullable=False, server_default=func.now()),
    Column("voided_at", _TIME),
    UniqueConstraint("client_session_uuid", "study_topic_id"),
    CheckConstraint("status = 'finalized'", name="status"),
    CheckConstraint(
        "correct_count >= 0 AND wrong_count >= 0 AND unsure_count >= 0"
        " AND cursor = correct_count + wrong_count + unsure_count AND cursor > 0",
        name="counts",
    ),
    Index(None, "user_id", "study_topic_id"),
    Index(None, "study_topic_id"),
)

study_question_attempts = Table(
    "study_question_attempts",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("study_question_id", BigInteger, nullable=False),
    Column("study_topic_id", BigInteger, nullable=False),
    Column("quiz_session_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    Column("selected_choice", Integer),
    Column("correct_choice", Integer, nullable=False),
    Column("is_correct", Boolean),
    Column("outcome", Text, nullable=False),
    Column("answered_at", _TIME, nullable=False),
    Column("answered_at_sent", _TIME),
    Column("time_was", Text),
    Column("utc_offset", SmallInteger),
    Column("duration_ms", Integer),
    # Null means that nothing was ever corrected: see `worker.store.operate.replaced`.
    Column("replaced", JSONB),
    CheckConstraint("position >= 0", name="position"),
    CheckConstraint(f"outcome IN {_OUTCOMES}", name="outcome"),
    CheckConstraint(
        "is_correct IS NOT DISTINCT FROM (selected_choice = correct_choice)", name="is_correct"
    ),
    CheckConstraint(
        "outcome = 'unsure' OR (is_correct IS NOT NULL AND (outcome = 'correct') = is_correct)",
        name="outcome_follows",
    ),
    # Rows of 0.1.0 do not say why a time was replaced: the time of receipt stands for it there.
    CheckConstraint(
        "CASE time_was WHEN 'missing' THEN answered_at_sent IS NULL"
        " WHEN 'unreadable' THEN answered_at_sent IS NULL"
        " WHEN 'too_early' THEN answered_at_sent IS NOT NULL AND answered_at_sent < answered_at"
        " WHEN 'in_the_future' THEN answered_at_sent IS NOT NULL AND answered_at_sent > answered_at"
        " ELSE time_was IS NULL AND (answered_at_sent IS NULL OR answered_at <= answered_at_sent)"
        " END",
        name="time_was",
    ),
    CheckConstraint("jsonb_typeof(replaced) = 'array'", name="replaced"),
    Index(None, "study_question_id", "user_id"),
    Index(None, "quiz_session_id"),
)

study_question_progress = Table(
    "study_question_progress",
    METADATA,
    Column("user_id", BigInteger, nullable=False),
    # Without a foreign key, because it is computed from attempts, whose references are checked.
    Column("study_question_id", BigInteger, nullable=False),
    Column("study_topic_id", BigInteger, nullable=False),
    Column("attempts_count", Integer, nullable=False),
    Column("correct_count", Integer, nullable=False),
    Column("wrong_count", Integer, nullable=False),
    Column("unsure_count", Integer, nullable=False),
    Column("correct_run", Integer, nullable=False),
    Column("best_run", Integer, nullable=False),
    Column("spaced_run", Integer, nullable=False),
    Column("recent_unsure", SmallInteger, nullable=False),
    Column("lapse_count", Integer, nullable=False),
    Column("first_correct_at", _TIME),
    Column("last_outcome", Text, nullable=False),
    Column("last_answered_at", _TIME, nullable=False),
    Column("pattern", Text, nullable=False),
    Column("stability", Double, nullable=False),
    Column("difficulty", Double, nullable=False),
    Column("due_at", _TIME, nullable=False),
    Column("scheduler", Text, nullable=False),
    Column("explanation_requested", Boolean, nullable=False, server_default=text("false")),
    # Triggers of migration 0020 draw one where a worker of an older version writes none.
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint(
        "attempts_count = correct_count + wrong_count + unsure_count AND attempts_count > 0"
        " AND correct_count >= 0 AND wrong_count >= 0 AND unsure_count >= 0",
        name="counts",
    ),
    CheckConstraint(
        "correct_run BETWEEN 0 AND best_run AND best_run <= correct_count"
        " AND spaced_run BETWEEN 0 AND correct_run AND lapse_count BETWEEN 0 AND correct_count",
        name="runs",
    ),
    CheckConstraint("(first_correct_at IS NULL) = (correct_count = 0)", name="first_correct"),
    CheckConstraint(f"last_outcome IN {_OUTCOMES}", name="last_outcome"),
    CheckConstraint(
        "pattern IN ('mastered', 'leech', 'stuck', 'relapsed', 'recovering', 'hesitant',"
        " 'known', 'learning')",
        name="pattern",
    ),
    CheckConstraint("stability > 0 AND difficulty BETWEEN 1 AND 10", name="memory"),
    PrimaryKeyConstraint("user_id", "study_question_id"),
    # Every attempt updates rows. This leaves room for the new version on the same page.
    postgresql_with={"fillfactor": "80"},
)

# The questions on which a user has no progress any more: triggers of migration 0020 write it.
ingest_forgotten = Table(
    "ingest_forgotten",
    METADATA,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("study_question_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
)

ingest_inbox = Table(
    "ingest_inbox",
    METADATA,
    Column("client_session_uuid", Uuid, primary_key=True),
    Column("content_digest", LargeBinary),
    Column("user_id", BigInteger),
    Column("received_at", _TIME, nullable=False, server_default=func.now()),
    Column("summary", JSONB),
    Column("viewer", Text),
    Column("erased_at", _TIME),
    CheckConstraint("length(content_digest) = 32", name="content_digest"),
    # Only the uuid of an erased batch is left, so that the batch can't come back.
    CheckConstraint(
        "CASE WHEN erased_at IS NULL THEN content_digest IS NOT NULL AND user_id IS NOT NULL"
        " ELSE content_digest IS NULL AND user_id IS NULL AND viewer IS NULL AND summary IS NULL"
        " END",
        name="erased",
    ),
    Index(None, "user_id"),
    # Rows arrive in this order, so an index of a few pages finds the newest.
    Index(None, "received_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    Index(None, "viewer", "received_at"),
)

outbox = Table(
    "outbox",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("message_id", Uuid, nullable=False),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=func.now()),
    UniqueConstraint("message_id"),
    Index(
        "outbox_results_idx", "id", postgresql_where=text(f"exchange = '{amqp.RESULTS_EXCHANGE}'")
    ),
    Index(
        "outbox_jobs_idx",
        "routing_key",
        "id",
        postgresql_where=text(f"exchange <> '{amqp.RESULTS_EXCHANGE}'"),
    ),
    # Rows are short-lived, so compressing them is not worth it.
    postgresql_with={"toast_tuple_target": "8160"},
)

viewer_grants = Table(
    "viewer_grants",
    METADATA,
    Column("viewer", Text, primary_key=True),
    Column("user_id", BigInteger, primary_key=True),
    Column("granted_at", _TIME, nullable=False, server_default=func.now()),
    # When the viewer last asked for the user's progress. Nobody nudges one that does not ask.
    Column("asked_at", _TIME),
    Index("viewer_grants_user_id_idx", "user_id", postgresql_where=text("asked_at IS NOT NULL")),
)

# What only the moment knows, for 30 days: see `worker.store.moments`.
ingest_groups = Table(
    "ingest_groups",
    METADATA,
    Column("received_at", _TIME),
    Column("id", BigInteger, Identity()),
    Column("worker", Text, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("milliseconds", REAL, nullable=False),
    # One element of each for every batch.
    Column("client_session_uuids", ARRAY(Uuid), nullable=False),
    Column("published_at", ARRAY(_TIME), nullable=False),
    Column("apps", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint("received_at", "id"),
    # Rows are short-lived, so compressing them is not worth it.
    postgresql_with={"toast_tuple_target": "8160"},
)

ingest_told = Table(
    "ingest_told",
    METADATA,
    Column("received_at", _TIME),
    Column("id", BigInteger, Identity()),
    Column("told_at", _TIME, nullable=False),
    Column("client_session_uuids", ARRAY(Uuid), nullable=False),
    PrimaryKeyConstraint("received_at", "id"),
    postgresql_with={"toast_tuple_target": "8160"},
)

# The workers that run, as they say themselves.
ingest_workers = Table(
    "ingest_workers",
    METADATA,
    Column("worker", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("started_at", _TIME, nullable=False),
    Column("seen_at", _TIME, nullable=False),
    Column("state", Text, nullable=False),
    Column("in_hand", Integer, nullable=False),
    # Why it is paused, if it is.
    Column("reason", Text),
)

ingest_erasures = Table(
    "ingest_erasures",
    METADATA,
    # autoincrement is off, because these are the study application's numbers.
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("erased_at", _TIME, nullable=False),
    # A trigger of migration 0020 draws it.
    Column("version", BigInteger, nullable=False, server_default=text("0")),
)

ingest_dead_letters = Table(
    "ingest_dead_letters",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    # What makes the same letter the same: see `worker.ingest.letters`.
    Column("key", LargeBinary, nullable=False),
    Column("died_at", _TIME, nullable=False, server_default=func.now()),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    # Empty where nobody knows.
    Column("viewer", Text, nullable=False),
    # Whatever a viewer wrote is bytes: text could not hold all of it.
    Column("routing_key", LargeBinary, nullable=False),
    Column("client_session_uuid", Uuid),
    Column("replay_id", Uuid),
    Column("properties", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("body_bytes", BigInteger, nullable=False),
    # Of a body of which only the beginning is kept.
    Column("body_sha256", LargeBinary),
    UniqueConstraint("key"),
    CheckConstraint("length(key) = 32", name="key"),
    CheckConstraint(
        "CASE WHEN body_sha256 IS NULL THEN length(body) = body_bytes"
        " ELSE length(body) < body_bytes AND length(body_sha256) = 32 END",
        name="body",
    ),
    Index(None, "died_at", "id"),
    Index(None, "viewer", "reason"),
    Index(None, "client_session_uuid"),
    Index(
        "ingest_dead_letters_replay_id_idx",
        "replay_id",
        postgresql_where=text("replay_id IS NOT NULL"),
    ),
)

# Not in the outbox itself: a relay of an older version would publish them as follow-up jobs.
ingest_replays = Table(
    "ingest_replays",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("letter_id", BigInteger, nullable=False),
    Column("message_id", Uuid, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=func.now()),
    UniqueConstraint("letter_id"),
    UniqueConstraint("message_id"),
)

ingest_pause = Table(
    "ingest_pause",
    METADATA,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("paused_at", _TIME, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    CheckConstraint("single", name="single"),
)

ingest_leases = Table(
    "ingest_leases",
    METADATA,
    Column("queue", Text),
    Column("worker", Text),
    Column("until", _TIME, nullable=False),
    PrimaryKeyConstraint("queue", "worker"),
)

ingest_audit = Table(
    "ingest_audit",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("happened_at", _TIME, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("effect", JSONB, nullable=False),
)

# Who prunes, and how much has gone so far: see `worker.store.prune`.
ingest_pruning = Table(
    "ingest_pruning",
    METADATA,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("worker", Text),
    Column("stepped_at", _TIME),
    Column("finished_at", _TIME),
    # Results that were received before are gone.
    Column("results_before", _TIME),
    Column("results", BigInteger, nullable=False, server_default=text("0")),
    Column("audit", BigInteger, nullable=False, server_default=text("0")),
    Column("moments", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("single", name="single"),
)
