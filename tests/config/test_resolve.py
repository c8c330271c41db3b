"""YAML file, then flags, then one validation: what wins, what is refused, and what the messages
say."""

from __future__ import annotations

import pytest

from megaladder.config.base import CommaInts, Positional, StrictModel, leaf_keys
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml, resolve, to_yaml
from megaladder.config.sections.grpo import presets
from megaladder.config.sft import SftConfig
from megaladder.errors import ConfigError
from megaladder.types import TokenWeighting

MINIMAL = ["--model.path", "m", "--data.path", "d.jsonl"]


def sft(*flags: str) -> SftConfig:
    return resolve(SftConfig, [*flags], "megaladder sft")


@pytest.fixture
def run_yaml(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_flags_win_over_the_file_and_the_file_over_defaults(run_yaml) -> None:
    path = run_yaml(
        "model: {path: m}\ndata: {path: d}\noptim: {lr: 1e-5, min_lr: 1e-6}\ntrain: {loss: cispo}\n"
    )
    config = sft(path, "--optim.lr", "1e-4", "--train.max-steps=7")
    assert (config.optim.lr, config.optim.min_lr, config.optim.eps) == (1e-4, 1e-6, 1e-8)
    assert config.train.loss is TokenWeighting.CISPO
    assert config.train.max_steps == 7


def test_the_contracts_keys_exist_with_the_contracts_defaults() -> None:
    """Key names that people's files rely on; values where a laptop's default is the same."""
    config = sft(*MINIMAL)
    assert (
        config.optim.model_dump()
        | {"lr": 5e-5, "betas": (0.9, 0.999), "weight_decay": 0.01, "clip_grad": 1.0}
        == config.optim.model_dump()
    )
    assert (
        config.optim.schedule,
        config.optim.warmup_ratio,
        config.train.loss,
        config.train.seed,
    ) == ("cosine", 0.1, "vanilla", 42)
    assert (
        config.data.truncation,
        config.data.packing,
        config.data.format,
        config.data.on_bad_row,
    ) == ("right", True, "auto", "error")
    assert (config.checkpoint.every, config.checkpoint.keep_last, config.checkpoint.keep_steps) == (
        10,
        2,
        (),
    )
    wanted = {
        "run_dir",
        "model.path",
        "model.tokenizer",
        "model.chat_template",
        "model.trust_remote_code",
        "data.path",
        "data.format",
        "data.fields",
        "data.mixture",
        "data.duplicates",
        "data.seq_length",
        "data.truncation",
        "data.packing",
        "data.holdout",
        "data.on_bad_row",
        "parallel.tp",
        "parallel.pp",
        "parallel.vpp",
        "parallel.cp",
        "parallel.sequence_parallel",
        "parallel.ranks",
        "train.global_batch_size",
        "train.micro_batch_size",
        "train.epochs",
        "train.max_steps",
        "train.loss",
        "train.precision",
        "train.fp8",
        "train.recompute",
        "train.seed",
        "optim.lr",
        "optim.betas",
        "optim.weight_decay",
        "optim.clip_grad",
        "optim.schedule",
        "optim.warmup_ratio",
        "checkpoint.every",
        "checkpoint.keep_last",
        "checkpoint.keep_steps",
        "checkpoint.keep_best",
        "checkpoint.export_hf",
        "checkpoint.async_save",
    }
    grpo = {
        "rollout.engine",
        "rollout.tp",
        "rollout.n",
        "rollout.temperature",
        "rollout.top_p",
        "rollout.max_tokens",
        "rollout.sync",
        "grpo.preset",
        "grpo.prompts_per_step",
        "grpo.mini_batches",
        "grpo.kl",
        "grpo.clip_low",
        "grpo.clip_high",
        "grpo.correction",
        "reward.kind",
        "reward.terms",
    }
    only_sft = {
        "data.truncation",
        "data.holdout",
        "train.global_batch_size",
        "train.loss",
        "checkpoint.keep_best",
    }
    assert wanted <= leaf_keys(SftConfig).keys()
    assert (wanted - only_sft) | grpo <= leaf_keys(GrpoConfig).keys()
    assert not (only_sft & leaf_keys(GrpoConfig).keys())


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--data.packing", "false"], "packing", False),
        (["--data.packing=False"], "packing", False),
        (["--data.no-packing"], "packing", False),
        (["--data.packing", "true"], "packing", True),
        (["--data.packing"], "packing", True),
        (["--data.holdout", "0.02"], "holdout", 0.02),
        (["--data.holdout", "200"], "holdout", 200),
        (["--data.holdout", "h.jsonl"], "holdout", "h.jsonl"),
        (["--data.holdout", "null"], "holdout", None),
        (["--data.holdout=null"], "holdout", None),
        (["--data.seq_length", "64"], "seq_length", 64),
        (["--data.seq-length", "64"], "seq_length", 64),
    ],
)
def test_spellings_of_a_flag(flags: list[str], key: str, value: object) -> None:
    found = getattr(sft(*MINIMAL, *flags).data, key)
    assert found == value
    assert type(found) is type(value)


def test_lists_on_the_command_line() -> None:
    config = sft(*MINIMAL, "--checkpoint.keep_steps", "10,20,40", "--optim.betas", "0.9", "0.95")
    assert config.checkpoint.keep_steps == (10, 20, 40)
    assert config.optim.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {path: m}\ndata: {path: d}\noptim:\n  lrr: 1\n",
            "run.yaml:4: unknown key 'optim.lrr'; fix: did you mean 'optim.lr'?",
        ),
        ("modle: {path: m}\n", "run.yaml:1: unknown key 'modle'; fix: did you mean 'model'?"),
        ("zzz: 1\n", "fix: the keys at the top are run_dir, model, data"),
        (
            "model: m\n",
            "run.yaml:1: model is a section, found 'm'; fix: keys below it, such as `path:`",
        ),
        ("model:\n", "run.yaml:1: model is a section, found None"),
        (
            "optim: {lr: fast}\n",
            (
                "run.yaml:1: optim.lr: should be a valid number, unable to parse string as a"
                " number; found 'fast'"
            ),
        ),
        ("optim: {lr: -1}\n", "optim.lr: should be greater than 0; found -1"),
        (
            "train: {epochs: 1}\nparallel: {tp: 0}\n",
            "run.yaml:2: parallel.tp: should be greater than or equal to 1; found 0",
        ),
        ("train: {loss: vanila}\n", "found 'vanila'"),
        ("checkpoint: {keep_steps: [1, x]}\n", "run.yaml:1: checkpoint.keep_steps"),
        ("parallel: {cp: 0}\n", "parallel.cp"),
    ],
)
def test_a_bad_file_says_key_value_line_and_fix(run_yaml, text: str, message: str) -> None:
    path = run_yaml(text)
    with pytest.raises(ConfigError) as caught:
        sft(path)
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_faults_of_a_file_are_reported_at_once(run_yaml) -> None:
    with pytest.raises(ConfigError) as caught:
        sft(run_yaml("optim: {lrr: 1, lr: x}\nparallel: {tpp: 2}\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_an_override_can_repair_what_the_file_gets_wrong(run_yaml) -> None:
    """Cross-field rules are checked once, on the final values."""
    path = run_yaml("model: {path: m}\ndata: {path: d}\nparallel: {vpp: 2}\n")
    with pytest.raises(
        ConfigError,
        match=(
            r"run\.yaml:3: parallel\.vpp 2 needs pipeline stages, pp is 1; fix: pp ≥ 2, or vpp null"
        ),
    ):
        sft(path)
    assert sft(path, "--parallel.pp", "2").parallel.vpp == 2


def test_a_bad_flag_names_the_flag_not_the_file(run_yaml) -> None:
    path = run_yaml("model: {path: m}\ndata: {path: d}\noptim: {lr: 1e-5}\n")
    with pytest.raises(ConfigError) as caught:
        sft(path, "--optim.lr=-1")
    assert (
        str(caught.value)
        == "optim.lr: should be greater than 0; found -1.0; fix: what it should be (--help shows each default)"
    )
    with pytest.raises(
        ConfigError, match=r"--data.packing: should be true or false; found 'maybe'"
    ):
        sft(path, "--data.packing=maybe")


def test_unknown_flags_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'optim.lrr'; fix: did you mean '--optim.lr'\?"):
        sft(*MINIMAL, "--optim.lrr", "1")
    with pytest.raises(ConfigError, match=r"'lr'; fix: did you mean '--optim.lr'\?"):
        sft(*MINIMAL, "--lr", "1")
    with pytest.raises(ConfigError, match=r"'learning_rate'; fix: here it is optim.lr"):
        sft(*MINIMAL, "--learning-rate=1")


def test_paths_may_hold_a_home_and_variables(monkeypatch) -> None:
    monkeypatch.setenv("WORK_OF_A_TEST", "/scratch")
    monkeypatch.setenv("HOME", "/home/me")
    config = sft("--model.path", "~/m", "--data.path", "$WORK_OF_A_TEST/a.jsonl")
    assert (config.model.path, config.data.path) == ("/home/me/m", "/scratch/a.jsonl")
    assert sft(*MINIMAL, "--run_dir", "r/${WORK_OF_A_TEST}/x").run_dir == "r//scratch/x"
    text = "$x$ and ~ $HOME/x"
    assert sft(*MINIMAL, "--data.system_prompt", text).data.system_prompt == text
    with pytest.raises(
        ConfigError, match=r"model.path \$NO_SUCH/m: the environment has no NO_SUCH; fix"
    ):
        sft("--model.path", "$NO_SUCH/m", "--data.path", "d")


def test_help_teaches_every_key(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(GrpoConfig, ["--help"], "megaladder grpo")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for key in leaf_keys(GrpoConfig):
        assert f"--{key.replace('_', '-')}" in text, key


@pytest.mark.parametrize("config_class", [SftConfig, GrpoConfig])
def test_every_key_is_documented(config_class: type[StrictModel]) -> None:
    undocumented = [key for key, field in leaf_keys(config_class).items() if not field.description]
    assert undocumented == []


@pytest.mark.parametrize(
    "flags",
    [[], ["--data.holdout", "0.1", "--checkpoint.keep_steps", "1,2", "--optim.eps", "1e-12"]],
)
def test_the_resolved_file_resolves_to_the_same_config(tmp_path, flags: list[str]) -> None:
    config = sft(*MINIMAL, *flags)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(SftConfig, str(path)) == config
    assert sft(str(path)) == config


def test_presets_are_defaults_that_anything_written_beats(run_yaml) -> None:
    """The published values (the methods' papers): DAPO clips at 0.2/0.28 by token, GSPO at
    3e-4/4e-4 by sequence, CISPO above only."""

    def grpo(*flags: str):
        return resolve(GrpoConfig, [*flags], "megaladder grpo").grpo

    dapo, gspo, cispo, dr = (
        grpo(*MINIMAL, "--grpo.preset", name) for name in ("dapo", "gspo", "cispo", "dr_grpo")
    )
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation, dapo.dynamic_sampling, dapo.kl) == (
        0.2,
        0.28,
        "token_mean",
        "accuracy",
        "none",
    )
    assert (gspo.clip_low, gspo.clip_high, gspo.ratio, gspo.aggregation) == (
        3e-4,
        4e-4,
        "sequence",
        "sequence_mean_token_mean",
    )
    assert (cispo.policy_loss, cispo.clip_low, cispo.clip_high) == ("cispo", 1.0, 4.0)
    assert (dr.std, dr.aggregation, dr.clip_high) == (False, "sequence_mean_token_sum_norm", 0.2)
    assert grpo(*MINIMAL) == dapo == GrpoConfig(model={"path": "m"}, data={"path": "d"}).grpo
    path = run_yaml("model: {path: m}\ndata: {path: d}\ngrpo: {preset: grpo, kl: none}\n")
    assert (grpo(path).kl, grpo(path).kl_coef) == ("none", 0.04)
    assert (
        grpo(path, "--grpo.preset", "gspo", "--grpo.clip_low", "0.5").model_dump()
        | {"clip_low": 3e-4, "kl": "none"}
        == gspo.model_dump()
    )
    for name in presets():
        assert (
            GrpoConfig(model={"path": "m"}, data={"path": "d"}, grpo={"preset": name}).grpo.preset
            == name
        )


class _Analysis(StrictModel):
    """A verb without a file."""

    inputs: Positional[tuple[str, ...]]
    """Files."""
    k: CommaInts = (1, 8)
    """k."""


def test_verbs_without_a_file_take_positional_and_comma_arguments() -> None:
    config = resolve(
        _Analysis, ["a.jsonl", "b.jsonl", "--k", "1,64"], "megaladder analyze", takes_yaml=False
    )
    assert config == _Analysis(inputs=("a.jsonl", "b.jsonl"), k=(1, 64))


@pytest.mark.parametrize(
    ("config_class", "key", "verb"),
    [
        *(
            (GrpoConfig, key, "sft")
            for key in sorted(leaf_keys(SftConfig).keys() - leaf_keys(GrpoConfig).keys())
        ),
        *((SftConfig, key, "grpo") for key in ("grpo.clip_low", "reward.kind", "rollout.n")),
    ],
)
def test_a_key_of_another_verb_is_unknown_and_that_verb_is_named(
    tmp_path, config_class, key: str, verb: str
) -> None:
    """In a file and on the command line alike."""
    section, _, leaf = key.rpartition(".")
    file = tmp_path / "run.yaml"
    file.write_text(f"{section}:\n  {leaf}: 1\n")
    for args in ([str(file)], [f"--{key}", "1"], [f"--{key}=1"]):
        with pytest.raises(ConfigError, match=rf"unknown key '{section}.*`megaladder {verb}`.*fix"):
            resolve(config_class, args, "megaladder test")
