"""The published documents: current, the same each time, and true of the models."""

import json
from datetime import UTC
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from schemas import amqp
from schemas.__main__ import PUBLISHED, main
from schemas.attempt_batch import AttemptBatch
from schemas.checks import MAX_CHECKED, Check, Checked, Recall
from schemas.documents import (
    ATTEMPT_BATCH,
    CHECK_SCHEMA,
    CHECKED_SCHEMA,
    INGEST_RESULT,
    PROGRESS_NUDGE_SCHEMA,
    PROGRESS_PAGE_SCHEMA,
    PROGRESS_REFUSAL_SCHEMA,
    PROGRESS_REQUEST_SCHEMA,
    RECALL_SCHEMA,
    asyncapi,
    documents,
    json_schema,
)
from schemas.followups import KINDS
from schemas.ingest_result import IngestResult
from schemas.progress import (
    MAX_REQUEST_BYTES,
    ProgressMark,
    ProgressPage,
    ProgressRefusal,
    ProgressRequest,
    QuestionProgress,
)
from schemas.words import Next, Outcome, Pattern, RefusalReason, RejectReason, SkipReason

FILES: dict[str, type[BaseModel]] = {
    PROGRESS_REQUEST_SCHEMA: ProgressRequest,
    PROGRESS_PAGE_SCHEMA: ProgressPage,
    PROGRESS_REFUSAL_SCHEMA: ProgressRefusal,
    PROGRESS_NUDGE_SCHEMA: ProgressMark,
    CHECK_SCHEMA: Check,
    CHECKED_SCHEMA: Checked,
    RECALL_SCHEMA: Recall,
    **{f"{kind.routing_key.replace('.', '_')}.v1.json": kind.model for kind in KINDS},
}
"""The model of each message besides batch and result, by the name of its published schema."""
CHANNELS = {
    noun + participle.capitalize(): kind
    for kind in KINDS
    for noun, _, participle in [kind.routing_key.partition(".")]
}
"""Each kind by its name in the AsyncAPI document, such as `explanationRequested`."""

Json = dict[str, Any]

# Hypothesis can't build what a pattern restricts, nor words that may be unknown.
NUMBERS = st.from_regex(r"-?[0-9]{1,19}", fullmatch=True)
POSITIVE = st.floats(min_value=0.001, max_value=36_500)
MARKS = st.builds(ProgressMark, user_id=NUMBERS)
QUESTIONS = st.builds(
    QuestionProgress,
    question_id=NUMBERS,
    stability=POSITIVE,
    last_outcome=st.sampled_from(Outcome),
    pattern=st.sampled_from(Pattern),
)
MESSAGES: dict[type[BaseModel], st.SearchStrategy[BaseModel]] = {
    IngestResult: st.builds(IngestResult, progress=st.none() | MARKS),
    ProgressMark: MARKS,
    Recall: st.builds(Recall, since=st.datetimes(timezones=st.just(UTC))),
    ProgressRequest: st.builds(ProgressRequest, user_id=st.none() | NUMBERS),
    ProgressRefusal: st.builds(
        ProgressRefusal, user_id=st.none() | NUMBERS, reason=st.sampled_from(RefusalReason)
    ),
    ProgressPage: st.builds(
        ProgressPage,
        user_id=NUMBERS,
        decay=POSITIVE,
        questions=st.lists(QUESTIONS, max_size=3).map(tuple),
        forget=st.lists(NUMBERS, max_size=3).map(tuple),
        next=st.sampled_from(Next),
    ),
}
"""How each model is built, where `st.builds` can't find out by itself."""


def test_the_published_documents_are_current() -> None:
    assert main(["check"]) == 0, "run: python -m schemas write"


def test_the_documents_are_the_same_each_time() -> None:
    assert documents() == documents()


@pytest.mark.parametrize("name", sorted(documents()))
def test_each_document_is_json_and_names_no_host(name: str) -> None:
    text = documents()[name]
    assert json.loads(text)
    assert "://" not in text.replace("https://json-schema.org/draft/2020-12/schema", "")


@pytest.mark.parametrize("name", [ATTEMPT_BATCH, INGEST_RESULT, *FILES])
def test_each_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(documents()[name]))


def test_check_names_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"], tmp_path) == 1
    assert main(["write"], tmp_path) == 0
    assert main(["check"], tmp_path) == 0
    (tmp_path / ATTEMPT_BATCH).write_text("{}")
    assert main(["check"], tmp_path) == 1
    assert ATTEMPT_BATCH in capsys.readouterr().err
    main(["write"], tmp_path)
    (tmp_path / "attempt_batch.v0.json").write_text("{}")
    assert main(["check"], tmp_path) == 1
    assert "attempt_batch.v0.json" in capsys.readouterr().err
    main(["write"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(documents())
    assert main([]) == 2


@pytest.mark.parametrize(
    ("model", "name"),
    [(IngestResult, INGEST_RESULT), *((model, name) for name, model in FILES.items())],
)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_published_message_matches_its_schema(
    model: type[BaseModel], name: str, data: st.DataObject
) -> None:
    sent = data.draw(MESSAGES.get(model, st.builds(model)))
    document = json.loads(sent.model_dump_json())
    jsonschema.Draft202012Validator(json.loads(documents()[name])).validate(document)
    assert model.model_validate_json(sent.model_dump_json()) == sent


def test_asyncapi_refers_only_to_what_is_there() -> None:
    document = asyncapi()
    references = list(_references(document))
    assert len(references) > 10
    for reference in references:
        if reference.startswith("./"):
            assert (PUBLISHED / reference).is_file()
        else:
            found: Any = document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]


def test_asyncapi_s_examples_are_what_the_models_accept() -> None:
    messages = asyncapi()["components"]["messages"]
    models: dict[str, type[BaseModel]] = {
        "attemptBatch": AttemptBatch,
        "ingestResult": IngestResult,
        "progressRequest": ProgressRequest,
        "progressPage": ProgressPage,
        "progressRefusal": ProgressRefusal,
        "progressNudge": ProgressMark,
        "check": Check,
        "checked": Checked,
        "recall": Recall,
    }
    statuses = set()
    for name, model in models.items():
        assert messages[name]["examples"], name
        for example in messages[name]["examples"]:
            model.model_validate_json(json.dumps(example["payload"]))
            headers = example.get("headers", {})
            assert set(headers) <= set(messages[name]["headers"]["properties"])
            read = model in (AttemptBatch, ProgressRequest)
            schema = json_schema(model, "validation" if read else "serialization")
            jsonschema.Draft202012Validator(schema).validate(example["payload"])
            statuses.add(example["payload"].get("status"))
    assert {"ingested", "rejected"} <= statuses


def test_asyncapi_says_what_to_do_about_each_reason() -> None:
    reasons = asyncapi()["components"]["messages"]["ingestResult"]["x-reasons"]
    assert set(reasons["rejected"]) == set(RejectReason)
    assert set(reasons["skipped"]) == set(SkipReason)
    refused = asyncapi()["components"]["messages"]["progressRefusal"]["x-reasons"]
    assert set(refused) == set(RefusalReason)


def test_asyncapi_says_how_to_log_in_and_that_the_login_is_required() -> None:
    document = asyncapi()
    server = document["servers"]["broker"]
    assert server["variables"]["protocol"]["default"] == "amqps"
    assert server["security"] == [{"$ref": "#/components/securitySchemes/login"}]
    batch = document["components"]["messages"]["attemptBatch"]
    assert "user_id" in batch["x-amqp-properties"]["required"]
    # What is not sent is not promised.
    assert "contentEncoding" not in json.dumps(document)


def test_asyncapi_s_schemas_keep_names_and_what_is_required() -> None:
    """By the document alone, as a generator of models sees them."""
    document = asyncapi()
    schemas = document["components"]["schemas"]
    for message in document["components"]["messages"].values():
        name = message["payload"]["$ref"].removeprefix("#/components/schemas/")
        schema = schemas[name]
        assert schema["title"] == name
        assert schema["required"]
        jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schemas["AttemptBatch"]["required"]) == {"client_session_uuid", "attempts"}
    assert schemas["Attempt"]["required"] == ["question_pub_id"]


def test_asyncapi_uses_every_channel_and_message() -> None:
    document = asyncapi()
    used = {operation["channel"]["$ref"] for operation in document["operations"].values()}
    assert used == {f"#/channels/{name}" for name in document["channels"]}
    sent = {name for channel in document["channels"].values() for name in channel["messages"]}
    assert sent == set(document["components"]["messages"])


def test_asyncapi_tells_the_names_that_the_code_uses() -> None:
    document = asyncapi()

    def address(channel: str) -> str:
        return str(document["channels"][channel]["address"]).replace("{viewer}", "ada")

    def exchange(channel: str) -> str:
        return str(document["channels"][channel]["bindings"]["amqp"]["exchange"]["name"])

    assert (exchange("attempts"), address("attempts")) == (
        amqp.INGEST_EXCHANGE,
        amqp.attempts_key("ada"),
    )
    assert (exchange("results"), address("results")) == (
        amqp.RESULTS_EXCHANGE,
        amqp.result_key("ada"),
    )
    assert address("attemptsQueue") == amqp.ATTEMPTS_QUEUE
    assert address("resultsQueue") == amqp.results_queue("ada")
    assert (exchange("progressRequests"), address("progressRequests")) == (
        amqp.INGEST_EXCHANGE,
        amqp.progress_request_key("ada"),
    )
    assert (exchange("progress"), address("progress")) == (
        amqp.RESULTS_EXCHANGE,
        amqp.progress_key("ada"),
    )
    assert address("progressRequestsQueue") == amqp.PROGRESS_QUEUE
    assert address("progressQueue") == amqp.progress_queue("ada")
    for channel, kind in CHANNELS.items():
        assert (exchange(channel), address(channel)) == (amqp.FOLLOWUPS_EXCHANGE, kind.routing_key)


def test_asyncapi_tells_each_messages_properties() -> None:
    types = {
        "attemptBatch": amqp.ATTEMPT_BATCH_TYPE,
        "ingestResult": amqp.INGEST_RESULT_TYPE,
        "progressRequest": amqp.PROGRESS_REQUEST_TYPE,
        "progressPage": amqp.PROGRESS_PAGE_TYPE,
        "progressRefusal": amqp.PROGRESS_REFUSAL_TYPE,
        "progressNudge": amqp.PROGRESS_NUDGE_TYPE,
        "check": amqp.CHECK_TYPE,
        "checked": amqp.CHECKED_TYPE,
        "recall": amqp.RECALL_TYPE,
        **{channel: kind.message_type for channel, kind in CHANNELS.items()},
    }
    messages = asyncapi()["components"]["messages"]
    assert set(messages) == set(types)
    for name, message in messages.items():
        properties = message["x-amqp-properties"]
        assert set(properties["required"]) >= {"message_id", "timestamp"}
        assert properties["properties"]["type"] == {"const": types[name]}
        mode = 1 if name.startswith(("progress", "check")) else 2
        assert properties["properties"]["delivery_mode"]["const"] == mode
        assert properties["properties"]["content_type"]["const"] == message["contentType"]
        assert message["bindings"]["amqp"]["messageType"] == types[name]
        assert amqp.TRACEPARENT_HEADER in message["headers"]["properties"]
        stamped = mode == 2 and name != "attemptBatch"
        assert (amqp.EPOCH_HEADER in message["headers"]["properties"]) is stamped
    for about_session in ("attemptBatch", "ingestResult"):
        assert messages[about_session]["headers"]["required"] == [amqp.CLIENT_SESSION_UUID_HEADER]


def test_the_longest_check_is_no_longer_than_a_request_may_be() -> None:
    longest = Check(client_session_uuids=tuple(UUID(int=n) for n in range(MAX_CHECKED)))
    assert len(json.dumps(longest.model_dump(mode="json")).encode()) <= MAX_REQUEST_BYTES


def _references(value: Any) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
