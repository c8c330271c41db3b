"""Regular expressions and JSON schemas: the whole answer, and nothing beside it."""

from __future__ import annotations

import json

import pytest

from megaladder.errors import DataError
from megaladder.rewards.verifiers import check_row, verify

DATE = {"pattern": r"\d{4}-\d{2}-\d{2}"}
PERSON = {
    "schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
}
RIGHT = (
    '{"name": "A", "age": 3}',
    '{"age": 3.0, "name": "A", "tags": []}',
    '```json\n{"name": "A", "age": 3}\n```',
    '<think>{"x"}</think>\n{"name": "A", "age": 150, "tags": ["a", "b"]}',
)


def test_a_pattern_wants_the_whole_answer():
    for text in ("2024-01-05", "<think>hm</think>\n2024-01-05\n", "2024-01-05<|im_end|>"):
        assert verify("regex", text, "", DATE).correct is True, text


def test_a_schema_wants_one_value_that_fits():
    assert [verify("json_schema", text, "", PERSON).correct for text in RIGHT] == [True] * 4
    assert verify("json_schema", RIGHT[0], "", {"schema": json.dumps(PERSON["schema"])}).correct


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("regex", {}),
        ("regex", {"pattern": "("}),
        ("regex", {"pattern": ""}),
        ("json_schema", {}),
        ("json_schema", {"schema": "no"}),
        ("json_schema", {"schema": {"type": "nothing"}}),
    ],
)
def test_a_row_without_a_form_is_refused(kind, row):
    with pytest.raises(DataError, match="fix:"):
        check_row(kind, "", row)
