"""Every key of every verb has an owner: changing it is either taken, and then some code within the
verb's reach reads it, or refused with the reason.

`config_reads` finds the readers. `check` is left out where it shows another verb's run: its keys
are that verb's.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from config_reads import readers
from verb_keys import VerbConfig, another_value, command_line, spelled, verb_configs

from megaladder.config.resolve import resolve, to_yaml
from megaladder.config.sections.evaluate import BenchmarkPromptSection
from megaladder.config.sections.shared import TrainedModelSection
from megaladder.config.verbs.data import SampleConfig
from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.errors import ConfigError

# their keys are those of the runs that they look at
OTHERS_KEYS = ("check sft", "check grpo", "dryrun sft", "dryrun grpo")
VERBS = {verb.name: verb for verb in verb_configs() if verb.name not in OTHERS_KEYS}
KEYS = [(name, key) for name, verb in VERBS.items() for key in verb.keys]
# the first word after `data make` chooses the class of the configuration
CHOOSES_THE_CLASS = {("data make arithmetic", "kind"), ("data make countdown", "kind")}
# another value of its own kind, where the one that is made up below means nothing
VALUES: dict[str, Any] = {
    "parallel.vpp": 2,
    "rollout.servers": ["http://a:1"],
    "budget.max_thinking": 5,
    "calibration": 0.4,
    "grpo.dual_clip": 3.0,
    "grpo.dynamic_sampling": "none",  # the preset switches it on
    "reward.terms": [{"name": "repetition", "weight": 2.0}],
    "data.holdout": 0.1,
    "data.fields": {"question": "problem"},
    "fields": {"question": "problem"},
    "data.mixture": [{"source": "a.jsonl", "weight": 2.0}],
    "model.chat_template_kwargs": {"enable_thinking": False},
    "chat_template_kwargs": {"enable_thinking": False},
    "model.template_date": "2025-01-01",
    "sigma": [1.0, 1.1, 1.2],
    "train.recompute_modules": ["mlp"],
}


def changed(verb: VerbConfig, key: str) -> Any:
    return VALUES[key] if key in VALUES else another_value(verb, key, verb.required)


@functools.cache
def unchanged(name: str) -> str:
    """The verb's configuration with what is required alone."""
    config_class = VERBS[name].config_class
    args = command_line(config_class, VERBS[name].required)
    return to_yaml(resolve(config_class, args, "test", takes_yaml=False))


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}:{key}" for name, key in KEYS])
def test_a_changed_key_is_taken_and_read_or_refused_with_the_reason(name: str, key: str) -> None:
    verb = VERBS[name]
    if (name, key) in CHOOSES_THE_CLASS:
        return
    flat = {**verb.required, key: changed(verb, key)}
    args = command_line(verb.config_class, flat)
    try:
        config = resolve(verb.config_class, args, "test", takes_yaml=False)
    except ConfigError as error:
        leaf = key.rpartition(".")[2]
        said = [line for line in str(error).splitlines() if leaf in line.replace("-", "_")]
        assert said, f"{key} = {spelled(flat[key])} was refused without being named: {error}"
        assert all("fix:" in line or "should be" in line for line in said)
    else:
        assert to_yaml(config) != unchanged(name)
    assert readers(verb.config_class, key, verb.run.partition(":")[0]), f"nothing reads {key}"


def test_a_key_without_a_reader_is_found() -> None:
    """`eval` once had model.init, `data sample` prompt.template: taken, and read by nothing."""

    class OldEval(EvalConfig):
        model: TrainedModelSection = TrainedModelSection()

    class OldSample(SampleConfig):
        prompt: BenchmarkPromptSection = BenchmarkPromptSection()

    assert readers(OldEval, "model.init", VERBS["eval"].run.partition(":")[0]) == set()
    assert readers(OldEval, "model.path", VERBS["eval"].run.partition(":")[0])
    sample = VERBS["data sample"].run.partition(":")[0]
    assert readers(OldSample, "prompt.template", sample) == set()
