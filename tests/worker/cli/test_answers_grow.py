"""What a command prints with --json only ever gets new fields: programs that read it go on working.

Each release leaves its shapes in `released/`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from tests.worker.cli.released import answers_0_1_0
from worker.cli.answers import document, schemas_of

RELEASED = Path(__file__).parent / "released"

NOW: dict[str, Any] = json.loads(document())


def lost(old: Any, new: Any, at: str) -> Iterator[str]:
    """The places where `new` does not give what `old` did. Both are schemas without references."""
    if "anyOf" in old or "anyOf" in new:
        variants = old.get("anyOf", [old])
        for each in new.get("anyOf", [new]):
            same = [was for was in variants if was.get("type") == each.get("type")]
            if not same:
                yield f"{at} may be {each.get('type')}"
            else:
                yield from lost(same[0], each, at)
        return
    if old.get("type") != new.get("type"):
        if (old.get("type"), new.get("type")) != ("number", "integer"):
            yield f"{at} is {new.get('type')}, was {old.get('type')}"
        return
    for name, was in old.get("properties", {}).items():
        place = f"{at}.{name}"
        if name not in new.get("properties", {}):
            yield f"{place} is gone"
            continue
        if name in old.get("required", ()) and name not in new.get("required", ()):
            yield f"{place} may be missing"
        yield from lost(was, new["properties"][name], place)
    if "items" in old:
        yield from lost(old["items"], new["items"], f"{at}[]")
    if isinstance(values := old.get("additionalProperties"), dict):
        yield from lost(values, new.get("additionalProperties", {}), f"{at}{{}}")


def resolved(schema: Any, shared: dict[str, Any]) -> Any:
    """The schema with each reference replaced by what it refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return resolved(shared[schema["$ref"].rpartition("/")[2]], shared)
        return {name: resolved(each, shared) for name, each in schema.items()}
    return [resolved(each, shared) for each in schema] if isinstance(schema, list) else schema


def losses(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The same for the shapes of all commands."""
    found = []
    for command, schema in old["commands"].items():
        if command not in new["commands"]:
            found.append(f"{command} is gone")
            continue
        was = resolved(schema, old.get("$defs", {}))
        found += lost(was, resolved(new["commands"][command], new["$defs"]), command)
    return found


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.json")), ids=lambda path: path.stem)
def test_each_released_shape_has_only_grown(path: Path) -> None:
    assert losses(json.loads(path.read_text(encoding="utf-8")), NOW) == []


def test_what_version_0_2_0_took_back_of_0_1_0_is_in_the_changelog() -> None:
    assert losses(schemas_of(answers_0_1_0.ANSWERS), NOW) == [
        "status.broker.dead is gone",
        "status.attention[] is object, was string",
        "erase.dead_letters_left is gone",
        "dead list.letters may be missing",
        "dead show.type is gone",
        "dead show.message_id is gone",
        "dead show.timestamp is gone",
        "dead show.headers is gone",
        "viewer list is object, was array",
    ]
    changelog = (Path(__file__).parents[3] / "CHANGELOG.md").read_text(encoding="utf-8")
    (said,) = (each for each in changelog.split("\n- ") if each.startswith("`--json`: "))
    for words in ("`attention`", "`database.dead`", "`dead_letters_left`", "`--letters`"):
        assert words in said
    for words in ("`properties`", "`viewers`"):
        assert words in said


class _Inner(TypedDict):
    a: int
    b: str | None


class _Was(TypedDict):
    one: str
    many: list[_Inner]
    by_name: dict[str, int]
    maybe: NotRequired[_Inner]


def _with(**changed: Any) -> dict[str, Any]:
    fields = _Was.__annotations__ | changed
    shape = TypedDict("Now", {k: v for k, v in fields.items() if v})  # type: ignore[misc]
    return TypeAdapter(shape).json_schema()


_LESS = TypedDict("_LESS", {"a": int})  # noqa: UP013
_OTHER = TypedDict("_OTHER", {"a": str, "b": str | None})  # noqa: UP013
_MORE = TypedDict("_MORE", {"a": int, "b": str | None, "c": bool})  # noqa: UP013


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"new": int}, []),
        ({"many": list[_MORE]}, []),
        ({"one": None}, ["x.one is gone"]),
        ({"one": NotRequired[str]}, ["x.one may be missing"]),
        ({"one": str | None}, ["x.one may be null"]),
        ({"one": int}, ["x.one is integer, was string"]),
        ({"many": list[_LESS]}, ["x.many[].b is gone"]),
        ({"many": list[_OTHER]}, ["x.many[].a is string, was integer"]),
        ({"maybe": NotRequired[_LESS]}, ["x.maybe.b is gone"]),
        ({"by_name": dict[str, str]}, ["x.by_name{} is string, was integer"]),
    ],
)
def test_whatever_a_reader_would_miss_is_found(
    changed: dict[str, Any], expected: list[str]
) -> None:
    old, new = TypeAdapter(_Was).json_schema(), _with(**changed)
    found = lost(resolved(old, old["$defs"]), resolved(new, new.get("$defs", {})), "x")
    assert [*found] == expected
