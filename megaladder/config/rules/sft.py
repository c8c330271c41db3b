"""Rules that only supervised fine-tuning has."""

from __future__ import annotations

from typing import Protocol

from megaladder.config.rules.unread import ReadIf
from megaladder.config.sections.evaluate import EvaluateSection, SftEvaluateSection
from megaladder.config.sections.sft import SftCheckpointSection, SftDataSection, SftTrainSection
from megaladder.types import TokenWeighting

# train/objectives/token_loss.py: the modes whose formula has no clip(…)
NO_CLIP = (TokenWeighting.VANILLA, TokenWeighting.TEACHER_WEIGHTED, TokenWeighting.ADV_ONLY)
_ENGINE_KEYS = SftEvaluateSection.model_fields.keys() - EvaluateSection.model_fields.keys()


class SftRun(Protocol):
    """The section that the conditions look at."""

    @property
    def evaluate(self) -> SftEvaluateSection: ...


READ_IF: tuple[ReadIf[SftRun], ...] = (
    ReadIf(
        tuple(f"evaluate.{key}" for key in sorted(_ENGINE_KEYS)),
        lambda run: bool(run.evaluate.benchmarks),
        "evaluate.benchmarks",
    ),
)
READ_BY_ENGINE: tuple[ReadIf[SftRun], ...] = (
    ReadIf(
        tuple(
            f"evaluate.{key}"
            for key in ("tp", "sync", "gpu_memory_utilization", "cpu_kv_cache_gib")
        ),
        lambda run: run.evaluate.engine == "vllm" or not run.evaluate.benchmarks,
        "evaluate.engine vllm",
    ),
)
"""Said where they are changed and the engine does not read them."""
CLIPPED = tuple(mode.value for mode in TokenWeighting if mode not in NO_CLIP)


def sft_problems(
    data: SftDataSection, train: SftTrainSection, checkpoint: SftCheckpointSection
) -> list[str]:
    """Violations that only supervised fine-tuning knows."""
    problems = []
    if isinstance(data.holdout, float) and not 0 < data.holdout <= 0.5:
        problems.append(
            f"data.holdout {data.holdout:g} is not a share of the samples; fix: a share in (0, 0.5], a"
            " number, a file, or null"
        )
    if isinstance(data.holdout, int) and data.holdout < 1:
        problems.append(
            f"data.holdout {data.holdout} holds nothing out; fix: a number ≥ 1, a share in (0,"
            " 0.5], a file, or null"
        )
    if train.eval_every and data.holdout is None:
        problems.append(
            f"train.eval_every {train.eval_every} needs data.holdout; fix: data.holdout 0.02"
            " or a file, or eval_every 0"
        )
    if checkpoint.keep_best is not None and data.holdout is None:
        problems.append(
            f"checkpoint.keep_best {checkpoint.keep_best} needs a held-out loss; fix: data.holdout"
            " 0.02 or a file, or keep_best null"
        )
    if train.loss in NO_CLIP:
        problems += [
            f"train.{name} {value:g} is read by losses that clip a ratio only, train.loss is"
            f" {train.loss}; fix: leave it out, or train.loss {', '.join(CLIPPED)}"
            for name in ("clip_ratio_low", "clip_ratio_high")
            if (value := getattr(train, name)) != SftTrainSection.model_fields[name].default
        ]
    return problems
