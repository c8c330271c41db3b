"""Every shipped recipe resolves; names, step counts and the values of the published runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import checked_values, resolve, validate
from megaladder.config.resolve.overlay import load_layered
from megaladder.config.resolve.run_names import DATA_ROWS, MODELS, overrides, parse_run_name
from megaladder.config.rules.layout import check_world
from megaladder.config.sft import SftConfig
from megaladder.config.strict_yaml import load_yaml
from megaladder.curate.score import load_rule
from megaladder.curate.select.recipe import load_recipes
from megaladder.curate.select.run import STAGES
from megaladder.errors import ConfigError
from megaladder.model.hf_config import model_shape
from megaladder.preflight.fit import check_model
from megaladder.tools.study.published_models import check_all, table

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
RUNS = [path for path in FILES if "model" in load_layered(path).values]
SELECTIONS = [path for path in FILES if "stages" in load_layered(path).values]
RETHINKING = sorted((RECIPES / "rethinking" / "runs").glob("*.yaml"))
# published name → optimizer steps (80 steps an epoch; 640 at the three equal budgets)
STEPS = {
    "Qwen3-14B_Math-CoT-20k_lr5e-5_ep8_bs256": 640,
    "Qwen3-14B_Math-CoT-2.5k_lr5e-5_ep8_bs32": 640,
    "Qwen3-14B_Math-CoT-20k_lr5e-5_ep1_bs32": 640,
    "Qwen3-14B_Math-CoT-20k_lr5e-5_ep16_bs256": 1280,
    "Qwen3-14B_Math-CoT-20k_lr1e-4_ep16_bs256_ConstLR": 1280,
    "Qwen3-14B_Math-CoT-20k_lr1e-5_ep2_bs256": 160,
    "Qwen3-14B_Math-CoT-20k_lr1e-5_ep1_bs256": 80,
}

PUBLISHED: dict[str, dict] = load_yaml(
    RECIPES.parents[1] / "tests" / "model" / "published_configs.yaml"
).values
# runs that start from another run's export
AFTER_TRAINING = {"runs/quagmires/25k2ep/hf/step_400": "Qwen3-4B-Base"}
BILLIONS = {
    "Qwen3-1.7B-Base": 1.72,
    "Qwen3-4B-Base": 4.02,
    "Qwen3-8B-Base": 8.19,
    "Qwen3-14B-Base": 14.77,
    "Qwen3-32B": 32.76,
    "Qwen2.5-1.5B": 1.54,
    "Qwen2.5-3B": 3.09,
    "Qwen2.5-7B": 7.62,
    "Qwen2.5-14B": 14.77,
    "Qwen2.5-32B-Instruct": 32.76,
    "internlm2_5-20b": 19.86,
    "internlm2_5-20b-llama": 19.86,
    "Mistral-Nemo-Base-2407": 12.25,
    "Meta-Llama-3-8B-Instruct": 8.03,
    "Llama-3.1-8B": 8.03,
    "Llama-3.2-3B": 3.21,
    "Qwen3-30B-A3B": 30.53,
    "GLM-4.5-Air": 106.85,
    "GLM-4.7": 352.80,
}


def config_of(path: Path) -> SftConfig | GrpoConfig:
    file = load_layered(path)
    config_class = GrpoConfig if "grpo" in file.values else SftConfig
    return validate(config_class, checked_values(config_class, file), file)


def test_every_file_is_a_run_a_selection_or_a_rule() -> None:
    others = set(FILES) - set(RUNS) - set(SELECTIONS)
    assert others == {RECIPES / "limo" / "score.yaml"}
    assert load_rule(str(RECIPES / "limo" / "score.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_published_model_of_a_run_opens_and_fits_its_layout(path: Path, tmp_path: Path) -> None:
    """What a start does before any rank: the model's config.json as published, its layout, its
    length."""
    config = config_of(path)
    name = AFTER_TRAINING.get(config.model.path, Path(config.model.path).name)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    (tmp_path / "tokenizer.json").touch()  # there must be one; its content is no layout's business
    here = config.model.model_copy(update={"path": str(tmp_path)})
    check_model(config.model_copy(update={"model": here}))


def test_the_page_of_models_lists_every_recipe_and_every_published_model() -> None:
    found = check_all()
    assert [one for one in found if one.problem is not None] == []
    assert [one.file for one in found] == [str(file.relative_to(RECIPES)) for file in RUNS]
    assert "| Rethinking SFT | 33 of 33 |" in table(found)
    assert table(found) in (RECIPES.parents[1] / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_have_the_published_number_of_parameters(name: str) -> None:
    assert round(model_shape(PUBLISHED[name]).num_parameters / 1e9, 2) == BILLIONS[name]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_run_resolves_and_its_ranks_divide(path: Path) -> None:
    config = config_of(path)
    assert check_world(config, config.parallel.ranks or config.parallel.least_ranks) >= 1
    assert path.read_text().startswith("# "), "say on top what it is"
    assert (
        f"examples/recipes/{path.relative_to(RECIPES)}" in path.read_text()
        or path.name.endswith("base.yaml")
    ), "and how to start it"


@pytest.mark.parametrize("path", SELECTIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_selection_resolves(path: Path) -> None:
    recipes = load_recipes(str(path), [], STAGES)
    assert recipes
    assert all(recipe.stages for recipe in recipes)


def test_the_33_rethinking_overlays_are_what_their_names_say() -> None:
    assert len(RETHINKING) == 33
    for path in RETHINKING:
        file, layered = json.loads(json.dumps(load_layered(path).values)), overrides(path.stem)
        assert path.stem == str(parse_run_name(path.stem))
        for section, keys in layered.items():
            found = file[section]
            assert (keys.items() <= found.items()) if isinstance(keys, dict) else (keys == found), (
                path.name,
                section,
            )
        config = config_of(path)
        base = config_of(RECIPES / "rethinking" / "base.yaml")
        assert config.optim.betas == base.optim.betas == (0.9, 0.999)
        assert config.optim.schedule == ("constant" if path.stem.endswith("_ConstLR") else "cosine")
        assert config.data.seq_length == 20_480


def test_published_step_counts() -> None:
    for name, steps in STEPS.items():
        config = config_of(RECIPES / "rethinking" / "runs" / f"{name}.yaml")
        rows = DATA_ROWS[parse_run_name(name).data]
        assert (
            rows // config.train.global_batch_size * config.train.epochs
            == parse_run_name(name).steps
            == steps
        ), name
    for label, rows in (("50k1ep", 50_000), ("25k2ep", 25_000), ("12.5k4ep", 12_500)):
        config = config_of(RECIPES / "quagmires" / f"train_{label}.yaml")
        assert rows / config.train.global_batch_size * config.train.epochs == 400
        assert config.data.path == f"quagmires/sft_{label}.jsonl"
    plans = load_recipes(str(RECIPES / "quagmires" / "equal_budget.yaml"), [], STAGES)
    assert [(plan.name, plan.values["rows"], plan.values["steps"]) for plan in plans] == [
        ("sft_50k1ep", 50_000, 400),
        ("sft_25k2ep", 25_000, 400),
        ("sft_12.5k4ep", 12_500, 400),
    ]
    limo = config_of(RECIPES / "limo" / "train_limo.yaml")
    assert 800 / limo.train.global_batch_size * limo.train.epochs == 375
    assert limo.checkpoint.every == 25, "once an epoch"


def test_every_model_of_the_grammar_has_a_layout_that_fits() -> None:
    """Heads, key/value groups and layers of the published models (their config.json)."""
    shapes = {
        "Qwen3-1.7B": (16, 8, 28),
        "Qwen3-4B": (32, 8, 36),
        "Qwen3-8B": (32, 8, 36),
        "Qwen3-14B": (40, 8, 40),
        "Qwen2.5-1.5B": (12, 2, 28),
        "Qwen2.5-3B": (16, 2, 36),
        "Qwen2.5-7B": (28, 4, 28),
        "Qwen2.5-14B": (40, 8, 48),
        "InternLM2.5-20B": (48, 8, 48),
    }
    assert shapes.keys() == MODELS.keys()
    for model, (heads, groups, layers) in shapes.items():
        _, tp, pp = MODELS[model]
        assert heads % tp == groups % tp == layers % pp == 0
        assert 8 % (tp * pp) == 0


def test_s1_and_dapo_values_are_the_published_ones() -> None:
    s1 = config_of(RECIPES / "s1" / "train_s1.yaml")
    assert (s1.optim.lr, s1.optim.betas, s1.optim.weight_decay, s1.optim.warmup_ratio) == (
        1e-5,
        (0.9, 0.95),
        1e-4,
        0.05,
    )
    assert (
        s1.train.global_batch_size,
        s1.train.epochs,
        s1.data.seq_length,
        s1.data.response_template,
    ) == (16, 5, 32768, "<|im_start|>assistant\n")
    s1_1 = config_of(RECIPES / "s1" / "train_s1_1.yaml")
    assert (s1_1.data.s1_teacher, s1_1.data.response_template, s1_1.optim.lr) == (
        "deepseek",
        None,
        1e-5,
    )
    rl = config_of(RECIPES / "transferability" / "rl_dapo.yaml")
    assert (
        rl.grpo.prompts_per_step,
        rl.rollout.n,
        rl.grpo.mini_batches,
        rl.grpo.clip_low,
        rl.grpo.clip_high,
    ) == (512, 16, 16, 0.2, 0.28)
    assert (
        rl.optim.lr,
        rl.optim.warmup_steps,
        rl.grpo.kl,
        rl.reward.terms[1].tokens,
        rl.grpo.dual_clip,
    ) == (1e-6, 10, "none", 4096, 10.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Qwen3-14B_Math-CoT-20k_lr5e-5_ep8", "expected"),
        ("Qwen9_Math-CoT-20k_lr5e-5_ep8_bs256", "unknown model 'Qwen9'"),
        ("Qwen3-14B_Math-CoT-3k_lr5e-5_ep8_bs256", "unknown data 'Math-CoT-3k'"),
    ],
)
def test_names_outside_the_grammar(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run_name(name)


# --- base files
# --------------------------------------------------------------------------------------------------


def test_overlay_wins_key_by_key_and_the_command_line_over_both(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text(
        "model: {path: m}\ndata: {path: d}\noptim: {lr: 1.0, eps: 1.0e-6}\ncheckpoint: {keep_steps:"
        " [1, 2]}\n"
    )
    (tmp_path / "middle.yaml").write_text("base: base.yaml\noptim: {lr: 2.0}\n")
    (tmp_path / "deep" / "run.yaml").write_text(
        "base: ../middle.yaml\ncheckpoint: {keep_steps: [3]}\n"
    )
    config = resolve(
        SftConfig, [str(tmp_path / "deep" / "run.yaml"), "--optim.lr", "3.0"], prog="megaladder sft"
    )
    assert (config.optim.lr, config.optim.eps, config.checkpoint.keep_steps, config.model.path) == (
        3.0,
        1e-6,
        (3,),
        "m",
    )


def test_messages_name_the_file_that_a_key_comes_from(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(
        "model: {path: m}\ndata: {path: d}\noptim:\n  learning: 1\n"
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\ntrain:\n  epocs: 3\n")
    with pytest.raises(ConfigError) as error:
        resolve(SftConfig, [str(tmp_path / "run.yaml")], prog="megaladder sft")
    assert f"{tmp_path / 'base.yaml'}:4: unknown key 'optim.learning'" in str(error.value)
    assert f"{tmp_path / 'run.yaml'}:3: unknown key 'train.epocs'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml\n", "no such file"),
        ("base: run.yaml\n", "leads back"),
        ("base: [a]\n", "should be the path of a YAML file"),
    ],
)
def test_bases_that_cannot_be_read(tmp_path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"run.yaml:1: base .*{message}|run.yaml:1: base {message}"
    ):
        load_layered(tmp_path / "run.yaml")
