"""Regular expressions and JSON schemas: the whole answer, and nothing beside it."""

from __future__ import annotations

import json

import pytest

from megaladder.errors import DataError
from megaladder.rewards.verifiers import check_row, verify

DATE = {"pattern": r"\d{4}-\d{2}-\d{2}"}
NOT_A_DATE = (
    *("2024-1-05", "2024-01-05.", "on 2024-01-05", "2024-01-05 2024-01-06", "2024/01/05", "x"),
    *("2024-01-05\nok", "\\boxed{2024-01-05}", "20240105", "-2024-01-05", "", " ", "２０２４-01-0"),
    *("`2024-01-05`", '"2024-01-05"', "2024-01-05</answer>", "<think>2024-01-05", "2024--01-05"),
    *("2024-01-055", "02024-01-05", "YYYY-MM-DD", r"\d{4}-\d{2}-\d{2}", ".*", "2024-01-", "None"),
)
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
WRONG = (
    *('{"name": "A"}', '{"age": 3}', "{}", "[]", "null", "3", '"A"', "true", "", "{", "name: A"),
    *('{"name": "", "age": 3}', '{"name": "A", "age": -1}', '{"name": "A", "age": 151}'),
    *('{"name": "A", "age": "3"}', '{"name": "A", "age": 3.5}', '{"name": "A", "age": true}'),
    *('{"name": 1, "age": 3}', '{"name": null, "age": 3}', '{"name": "A", "age": null}'),
    *('{"name": "A", "age": 3, "x": 1}', '{"name": "A", "age": 3, "tags": ["a", "a"]}'),
    *('{"name": "A", "age": 3, "tags": [1]}', '{"name": "A", "age": 3, "tags": "a"}'),
    *('[{"name": "A", "age": 3}]', '{"name": "A", "age": 3} {"name": "A", "age": 3}'),
    *('{"name": "A", "age": 3}, ok', 'Here: {"name": "A", "age": 3}', '{"name": "A", "age": 3}.'),
    *("{'name': 'A', 'age': 3}", '{name: "A", age: 3}', '{"name": "A", "age": 3,}'),
    *('{"name": "A", "age": NaN}', '{"name": "A", "age": Infinity}', '{"name": "A", "age": 1e999}'),
    *('{"name": "A", "age": 3, "age": 4}', '{"name": "A", "age": 200, "age": 3}'),
    *('{"name": "A", "age": 03}', '{"name": "A", "age": 0x3}', '{"name": "A", "age": +3}'),
    *(
        '// {"name": "A", "age": 3}',
        '{"name": "A", "age": 3} // x',
        '<think>{"name": "A", "age": 3}',
    ),
    *('```json\n{"name": "A", "age": 3}', '```\n1\n```\n```\n{"name": "A", "age": 3}\n```'),
    *(
        "\\boxed{{}}",
        '{"NAME": "A", "AGE": 3}',
        '{"name": "A" "age": 3}',
        '{"name", "A", "age", 3}',
    ),
    *('{"name": "A", "age": 3}}', '{{"name": "A", "age": 3}', "age: 3", '"age"'),
    *("[" * 5000, '{"name":' * 3000, '{"$ref": "#"}', json.dumps(PERSON["schema"])),
    *('{"name": ["A"], "age": 3}', '{"name": {"x": "A"}, "age": 3}', '{"name": "A", "age": [3]}'),
    *('{"name": "A", "age": 1e3}', '{"name": "A", "age": -0.5}', '{"name": "A", "age": ""}'),
)


def test_a_pattern_wants_the_whole_answer():
    for text in ("2024-01-05", "<think>hm</think>\n2024-01-05\n", "2024-01-05<|im_end|>"):
        assert verify("regex", text, "", DATE).correct is True, text
    assert [text for text in NOT_A_DATE if verify("regex", text, "", DATE).correct] == []


def test_a_schema_wants_one_value_that_fits():
    assert [verify("json_schema", text, "", PERSON).correct for text in RIGHT] == [True] * 4
    assert len(set(WRONG)) >= 60
    assert [text for text in WRONG if verify("json_schema", text, "", PERSON).correct] == []
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
