"""Keys at work: each key of a verb is changed, the verb runs, and what it did is other than before.

`test_every_key` says that some code reads each key; this says that the value arrives, or that the
key is refused where nothing reads it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from clean_fork import run_in_fork
from walks import inputs
from walks.every import KEYS, every_walk, keys_of
from walks.walk import Deed, walk

WALKS = {how.verb: how for how in every_walk(Path())}
QUICK = [verb for verb, how in WALKS.items() if not how.slow]
# a verb with sections is walked section by section
SLOW = [
    (verb, section)
    for verb, how in WALKS.items()
    if how.slow
    for section in dict.fromkeys(key.rpartition(".")[0] for key in keys_of(how))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    inputs.make_inputs(folder)
    inputs.make_models(folder)
    inputs.make_conversions(folder)
    return folder


@pytest.fixture(scope="module")
def folder_with_runs(folder: Path) -> Path:
    # in a process of its own, as the runs of the walks: it leaves threads behind
    assert run_in_fork(inputs.make_runs, folder) == 0
    return folder


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, dict[str, Deed]]:
    """By verb: what its runs without a change did; each is made once, by whoever needs it first."""
    return {verb: {} for verb in WALKS}


def without_effect(
    verb: str, inputs: Path, keys: list[str], folder: Path, plain: dict[str, Deed] | None = None
) -> dict[str, str]:
    """Keys whose change nothing shows, with what the run said. All keys must have been tried."""
    how = next(one for one in every_walk(inputs) if one.verb == verb)
    found = walk(how, folder, keys, plain)
    assert set(keys) <= set(found)
    return {
        key: finding.said for key, finding in found.items() if finding.kind in ("same", "noted")
    }


def test_every_verb_has_a_walk() -> None:
    missing = sorted(KEYS.keys() - WALKS.keys())
    assert not missing, (
        f"no walk changes the keys of: {', '.join(missing)}; fix: a Walk for each, as the first lines"
        " of tests/walks/every.py say"
    )


def test_every_key_of_every_verb_is_walked() -> None:
    """What `check` and `dryrun` share with the runs that they tell of is walked there."""
    for verb, how in WALKS.items():
        shared = set(KEYS[how.shares]) if how.shares else set()
        for key, other in how.shown_by.items():
            assert key in keys_of(WALKS[other])
            shared.add(key)
        chooses_the_class = {"kind"} if verb.startswith("data make ") else set()
        assert {*keys_of(how)} | shared | chooses_the_class >= set(KEYS[verb]), verb
        named = [*how.values, *how.beside, *how.needs, *how.together, *how.base]
        assert set(named) <= set(KEYS[verb]), f"{verb}: names keys that it does not have"


@pytest.mark.parametrize("verb", QUICK)
def test_every_key_of_a_verb_does_something(verb: str, folder: Path, tmp_path: Path) -> None:
    assert without_effect(verb, folder, keys_of(WALKS[verb]), tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "section"), SLOW)
def test_every_key_of_a_section_does_something(
    verb: str,
    section: str,
    folder_with_runs: Path,
    tmp_path: Path,
    plain_runs: dict[str, dict[str, Deed]],
) -> None:
    keys = [key for key in keys_of(WALKS[verb]) if key.rpartition(".")[0] == section]
    assert without_effect(verb, folder_with_runs, keys, tmp_path, plain_runs[verb]) == {}
