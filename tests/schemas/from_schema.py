"""A Hypothesis strategy for what a JSON Schema allows: the few keywords that ours use.

An unknown keyword is an error here, so that a schema can't say more than is tested.
"""

import re
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

_SILENT = {"$schema", "$id", "$defs", "title", "description", "default", "examples", "format"}


def from_schema(schema: Json, root: Json | None = None) -> st.SearchStrategy[Any]:
    """Values that `schema` allows; `$ref` is looked up in `root`."""
    root = root or schema
    rules = {key: value for key, value in schema.items() if key not in _SILENT}
    match rules:
        case {"$ref": str(reference), **rest} if not rest:
            found: Any = root
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
            return from_schema(found, root)
        case {"anyOf": list(choices), **rest} if not rest:
            return st.one_of([from_schema(choice, root) for choice in choices])
        case {"type": "null", **rest} if not rest:
            return st.none()
        case {"type": "boolean", **rest} if not rest:
            return st.booleans()
        case {"type": "integer", **rest} if rest.keys() <= {"minimum", "maximum"}:
            whole = st.integers(rest.get("minimum"), rest.get("maximum"))
            return whole | whole.map(float).filter(lambda value: abs(value) <= 2**31 - 1)
        case {"not": {"pattern": str(pattern)}, **rest}:
            return from_schema(rest, root).filter(lambda text: re.search(pattern, text) is None)
        case {"type": "string", "pattern": str(pattern), **rest} if rest.keys() <= {
            "minLength",
            "maxLength",
        }:
            low, high = rest.get("minLength", 0), rest.get("maxLength", 1_000)
            return st.from_regex(pattern).filter(lambda text: low <= len(text) <= high)
        case {"type": "string", **rest} if not rest:
            return st.text()
        case {"type": "array", "items": dict(items), **rest} if rest.keys() <= {
            "minItems",
            "maxItems",
        }:
            low = rest.get("minItems", 0)
            return st.lists(from_schema(items, root), min_size=low, max_size=low + 5)
        case {"type": "object", "properties": dict(properties), **rest} if rest.keys() <= {
            "required"
        }:
            known = {name: from_schema(inner, root) for name, inner in properties.items()}
            required = {name: known.pop(name) for name in rest.get("required", [])}
            unknown = st.dictionaries(
                st.text().filter(lambda name: name not in properties), st.text(), max_size=2
            )
            return st.builds(
                lambda more, fields: more | fields,
                unknown,
                st.fixed_dictionaries(required, optional=known),
            )
    raise AssertionError(f"the schema says something that is not tested: {rules}")
