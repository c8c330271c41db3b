"""Every YAML file under examples/ that is a run resolves, writes itself back, and has a comment
that says how to start it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megaladder import cli
from megaladder.config.grpo import GrpoConfig
from megaladder.config.resolve import from_yaml, to_yaml
from megaladder.config.rules.layout import batch_line, check_world
from megaladder.config.sft import SftConfig
from megaladder.config.strict_yaml import load_yaml, parse_yaml
from megaladder.preflight.check import GRPO_SECTIONS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUNS = sorted(EXAMPLES.glob("configs/*.yaml"))


def _class_of(path: Path) -> type[SftConfig] | type[GrpoConfig] | None:
    values = load_yaml(path).values
    if "model" not in values or "data" not in values:
        return None  # another verb's file: its own tests load it
    return GrpoConfig if any(section in values for section in GRPO_SECTIONS) else SftConfig


def test_there_are_examples() -> None:
    assert {"sft_qwen3_14b.yaml", "sft_arithmetic_cpu.yaml", "sft_gsm8k_cpu.yaml"} <= {
        path.name for path in RUNS
    }


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_shipped_config_resolves(path: Path) -> None:
    config_class = _class_of(path)
    if config_class is None:
        pytest.skip("not a training run")
    config = from_yaml(config_class, str(path))
    ranks = config.parallel.ranks or config.parallel.least_ranks
    assert check_world(config, ranks) >= 1
    assert batch_line(config, ranks)
    assert config_class.model_validate(parse_yaml(to_yaml(config), "resolved").values) == config
    assert path.read_text().startswith("# "), "say on top what it is and how to start it"
    assert (
        "megaladder" in path.read_text().split("run_dir")[0]
        or ".sh" in path.read_text().split("run_dir")[0]
    )


def test_the_14b_recipe_is_the_published_one() -> None:
    """arXiv 2604.06628: lr 5e-5, 8 epochs, batch 256, cosine with warm-up 0.1, betas 0.9/0.999, wd
    0.01, clip 1.0, 8 GPUs."""
    config = from_yaml(SftConfig, str(EXAMPLES / "configs" / "sft_qwen3_14b.yaml"))
    assert (
        config.optim.lr,
        config.optim.betas,
        config.optim.weight_decay,
        config.optim.clip_grad,
    ) == (5e-5, (0.9, 0.999), 0.01, 1.0)
    assert (
        config.optim.schedule,
        config.optim.warmup_ratio,
        config.train.epochs,
        config.train.global_batch_size,
    ) == ("cosine", 0.1, 8, 256)
    assert (config.train.fp8, config.data.packing, config.data.seq_length) == (None, True, 20480)
    assert config.parallel.ranks == 8
    assert {10, 20, 40, 80, 160, 320, 480, 640} == set(config.checkpoint.keep_steps)


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.relative_to(EXAMPLES).as_posix()
)
def test_check_passes_without_data_and_says_what_is_needed(
    path: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """On a machine that has neither models nor data: a run's layout and memory, a recipe's stages
    and columns."""
    monkeypatch.chdir(tmp_path)  # a checkout may hold what a quickstart made
    assert cli.main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "needs  " in said or "next  " in said
    assert (
        "memory/rank" in said
        or "selections" in said
        or "rule  " in said
        or "no known model" in said
    )
    assert "DOES NOT FIT" not in said
    if "a3b" in path.name:
        assert "fits 140 GiB" in said
