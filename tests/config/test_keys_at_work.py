"""Keys at work: each key of a verb is changed, the verb runs, and what it did is other than before.

`test_every_key` says that some code reads each key; this says that the value arrives. Verbs that
need a model or a network are not walked here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from key_walk import Walk, walk
from key_walks import cheap_walks, make_inputs
from verb_keys import verb_configs

KEYS = {verb.name: list(verb.keys) for verb in verb_configs()}
CHEAP = [how.verb for how in cheap_walks(Path())]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def without_effect(how: Walk, keys: list[str], folder: Path) -> dict[str, str]:
    """Keys whose change nothing shows, with what the run said. All keys must have been tried."""
    found = walk(how, folder, keys)
    assert set(found) == set(keys)
    return {key: finding.said for key, finding in found.items() if finding.kind == "same"}


@pytest.mark.parametrize("verb", CHEAP)
def test_every_key_of_a_verb_does_something(verb: str, inputs: Path, tmp_path: Path) -> None:
    how = next(one for one in cheap_walks(inputs) if one.verb == verb)
    # the first word after `data make` chooses the class of the configuration
    keys = [key for key in KEYS[verb] if (verb[:9], key) != ("data make", "kind")]
    assert without_effect(how, keys, tmp_path) == {}
