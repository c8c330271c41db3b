"""Strict YAML: the core schema, every key's line, and one readable error per fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from megaladder.config import strict_yaml
from megaladder.config.resolve.resolver import dump_yaml
from megaladder.config.strict_yaml import load_yaml, parse_yaml
from megaladder.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5.0e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("-0.0", -0.0),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("0x10", "0x10"),
        ("'1e-5'", "1e-5"),
        ("[1, 2e-1, x]", [1, 0.2, "x"]),
        ("1_000", "1_000"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    found = parse_yaml(f"k: {text}", "f").values["k"]
    assert found == value
    assert type(found) is type(value)


def test_lines_of_every_key() -> None:
    file = parse_yaml("a: 1\nb:\n  c: 2\n\n  d: {e: 3}\n", "run.yaml")
    assert file.lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 5, ("b", "d", "e"): 5}
    assert file.where(("b", "d", "absent")) == "run.yaml:5"
    assert file.where(("z",)) == "run.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: is empty"),
        ("# only a comment\n", "f: is empty"),
        ("- a\n- b\n", "f:1: expected a mapping (`key: value` lines) at the top, found a list"),
        ("just words", "found a str"),
        ("a: 1\nb: 2\na: 3\n", "f:3: key 'a' stands in line 1 already"),
        ("optim:\n  lr: 1\n  x: 2\n  lr: 3\n", "f:4: key 'optim.lr' stands in line 2 already"),
        ("optim: {lr: 1, lr: 2}", "f:1: key 'optim.lr' stands in line 1 already"),
        ("a: [1, 2\nb: 3\n", "f:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "f:2: not valid YAML"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "f:1: tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("? [1, 2]\n: 3\n", "f:1: a key must be a plain word"),
        ("a: &x [*x]", "f:1: an anchor contains itself"),
        ("a: \x07", "f: not valid YAML"),
        ("base: {x: 1}\nb: {<<: 5}", None),
    ],
)
def test_faults_name_file_line_and_fix(text: str, message: str | None) -> None:
    if message is None:  # merge keys are not part of YAML 1.2: an ordinary (and later unknown) key
        assert parse_yaml(text, "f").values["b"] == {"<<": 5}
        return
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert message in str(caught.value)
    assert "fix:" in str(caught.value)


def test_python_tags_are_not_executed(tmp_path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ConfigError, match="tags such as"):
        parse_yaml(
            f"a: !!python/object/apply:pathlib.Path.touch ['{witness}']\nb:"
            " !!python/name:os.system x",
            "f",
        )
    assert not witness.exists()


def test_anchors_and_aliases_work() -> None:
    assert parse_yaml("a: &x {n: 1}\nb: *x\n", "f").values == {"a": {"n": 1}, "b": {"n": 1}}


def test_unreadable_files(tmp_path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for path, message in [
        ("latin.yaml", "not UTF-8"),
        ("absent.yaml", "no such file"),
        (".", "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_yaml(tmp_path / path)


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
)
_KEYS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
)


@given(
    st.dictionaries(
        _KEYS,
        st.recursive(
            _LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(_KEYS, x, max_size=3)
        ),
        min_size=1,
    )
)
@example({"0": "\x85"})
def test_what_we_write_reads_back_the_same(values: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(values), "f").values == values


def test_anchors_inside_anchors_are_counted_before_they_fill_the_memory():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    with pytest.raises(ConfigError, match=r"run.yaml:\d+: more than 100,000 values"):
        parse_yaml("\n".join(lines), "run.yaml")


@pytest.mark.parametrize("text", ["a: " + "[" * 5000, "a: " + "[" * 80 + "]" * 80, "{a: " * 5000])
def test_values_inside_values_have_an_end(text):
    with pytest.raises(ConfigError, match=r"run.yaml"):
        parse_yaml(text, "run.yaml")


def test_half_of_a_surrogate_pair_is_no_text():
    with pytest.raises(ConfigError, match=r"^f:2: half of a UTF-16 surrogate pair; fix: "):
        parse_yaml('a: 1\nb: "\\ud800"\n', "f")


def test_what_is_no_yaml_is_not_scanned_deeper_than_values_may_lie():
    """The scanner in Python takes the square of the depth: it stops where values may not lie."""
    with pytest.raises(ConfigError, match="more than 50 deep"):
        parse_yaml("{a:" + "{" * 100_000, "f")


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml")
def test_both_parsers_read_our_files_alike():
    """What libyaml reads has the values and lines that PyYAML's own parser finds."""
    files = list(Path(strict_yaml.__file__).parents[1].rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        text = path.read_text("utf-8")
        found = [
            (strict_yaml._Builder(loader, "f", lines).build(loader.get_single_node(), ()), lines)
            for loader, lines in ((strict_yaml._QUICK(text), {}), (strict_yaml._PLAIN(text), {}))
        ]
        assert found[0] == found[1], path
