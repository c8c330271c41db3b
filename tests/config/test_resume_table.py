"""Every key of a training config is classified for resume, and the comparison does what its class
says."""

from __future__ import annotations

import pytest
import yaml

from megaladder.config.base import leaf_keys
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import to_yaml
from megaladder.config.resume import RESUME_TABLE, Resume, compare_for_resume
from megaladder.config.sft import SftConfig

BASE = SftConfig(model={"path": "m"}, data={"path": "d"}).model_dump(mode="json")
GRPO = GrpoConfig(model={"path": "m"}, data={"path": "d"}).model_dump(mode="json")


def changed(key: str, value: object, base: dict = BASE) -> dict:
    name, _, below = key.partition(".")
    return {**base, name: changed(below, value, base[name]) if below else value}


def test_every_key_is_classified_and_no_class_names_a_key_that_is_gone() -> None:
    keys = leaf_keys(SftConfig).keys() | leaf_keys(GrpoConfig).keys()
    assert keys - RESUME_TABLE.keys() == set(), (
        "classify new keys in config/resume.py: may a run continue with another value?"
    )
    assert RESUME_TABLE.keys() - keys == set()


@pytest.mark.parametrize("key", sorted(leaf_keys(GrpoConfig).keys()))
def test_each_key_is_treated_as_its_class_says(key: str) -> None:
    errors, changes = compare_for_resume(GRPO, changed(key, "another value", GRPO))
    kind = RESUME_TABLE[key]
    assert (len(errors), len(changes)) == {
        Resume.MUST_MATCH: (1, 0),
        Resume.MAY_CHANGE: (0, 1),
        Resume.IGNORED: (0, 0),
    }[kind]
    for line in (*errors, *changes):
        assert line.startswith(f"{key}: ")
        assert "'another value'" in line


def test_both_values_are_shown() -> None:
    assert compare_for_resume(BASE, changed("data.path", "e"))[0] == [
        "data.path: the run was started with 'd', now it is 'e'"
    ]
    assert compare_for_resume(BASE, changed("optim.lr", 1.0))[1] == ["optim.lr: 5e-05 → 1.0"]
    assert compare_for_resume(BASE, changed("train.max_steps", 5))[1] == [
        "train.max_steps: null → 5"
    ]


def test_a_config_read_back_from_its_run_folder_is_the_same() -> None:
    config = SftConfig(
        model={"path": "m"}, data={"path": "d", "holdout": 0.1}, checkpoint={"keep_steps": [1, 2]}
    )
    assert compare_for_resume(yaml.safe_load(to_yaml(config)), config.model_dump(mode="json")) == (
        [],
        [],
    )


def test_keys_of_another_version_are_changes_and_unclassified_ones_are_errors() -> None:
    old = {
        **BASE,
        "train": {key: value for key, value in BASE["train"].items() if key != "seed"},
        "gone": 1,
    }
    errors, changes = compare_for_resume(old, BASE)
    assert errors == []
    assert changes == ["gone: 1 → absent", "train.seed: absent → 42"]
    errors, _ = compare_for_resume({"new_key": 1}, {"new_key": 2})
    assert "add it to config/resume.py" in errors[0]
