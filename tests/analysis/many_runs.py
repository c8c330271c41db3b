"""Many run folders as training leaves them, in a second: for the size of a report and the pace of watch.

python tests/analysis/many_runs.py FOLDER [NUM_RUNS]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

SFT_STEPS, GRPO_STEPS, ROLLOUT_STEPS = 1000, 200, (1, 100, 200)
SFT_KEYS = (
    "loss",
    "grad_norm",
    "lr",
    "tokens_per_s",
    "mfu",
    "non_padding_share",
    "num_micro_batches",
)
GRPO_KEYS = (
    *("loss", "grad_norm", "lr", "tokens_per_s", "reward", "reward_std", "accuracy", "entropy"),
    *("response_tokens_mean", "response_tokens_max", "zero_variance_groups", "policy_loss"),
    *("truncated_completions", "ratio_mean", "ratio_max", "clip_low_share", "clip_high_share"),
    *("old_kl", "mismatch_mean", "mismatch_max", "mismatch_k1", "mismatch_k3", "correction_weight"),
    *("mismatch_outside_share", "sync_s", "rollouts_s", "logprobs_s", "update_s", "other_s"),
)
ANSWER_CHARS = 6000


def write_many(folder: Path, num_runs: int) -> None:
    """Half SFT, half GRPO, each with the scores of its last step."""
    rng = np.random.default_rng(0)
    for number in range(num_runs):
        grpo = number % 2 == 1
        name = f"{'grpo' if grpo else 'sft'}-{number:03d}"
        run = folder / "runs" / name
        steps, keys = (GRPO_STEPS, GRPO_KEYS) if grpo else (SFT_STEPS, SFT_KEYS)
        _write_metrics(run, steps, keys, rng)
        (run / "config.yaml").write_text("grpo: {}\n" if grpo else "train: {loss: sft}\n")
        for step in ROLLOUT_STEPS if grpo else ():
            _write_rollouts(run / "rollouts" / f"step_{step}.jsonl", step, rng)
        _write_samples(folder / "eval" / name / "gsm8k", 0.2 + 0.6 * number / num_runs, rng)


def _write_metrics(run: Path, steps: int, keys: tuple[str, ...], rng: np.random.Generator) -> None:
    run.mkdir(parents=True)
    values = np.cumsum(rng.normal(size=(steps, len(keys))), axis=0) / math.sqrt(steps) + 3
    with (run / "metrics.jsonl").open("w") as file:
        for step, row in enumerate(values.tolist(), start=1):
            fixed = {
                "step": step,
                "total_steps": steps,
                "tokens": 16384,
                "step_s": 1.5,
                "flops": 1e12,
            }
            file.write(json.dumps({**fixed, **dict(zip(keys, row, strict=True))}) + "\n")


def _write_rollouts(path: Path, step: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for i in range(64):
            right = bool(rng.random() < 0.5)
            text = f"<think>{'some words of a long trace ' * (ANSWER_CHARS // 27)}</think>\\boxed{{{i}}}"
            row = {"step": step, "id": f"p{i}", "prompt": f"What is {i}?", "completion": text}
            row |= {"gold": str(i), "answer": str(i), "correct": right, "reward": float(right)}
            file.write(json.dumps({**row, "num_tokens": 1500, "finish_reason": "stop"}) + "\n")


def _write_samples(folder: Path, skill: float, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    with (folder / "samples_gsm8k.jsonl").open("w") as file:
        for i in range(60):
            right = (rng.random(4) < skill).astype(int).tolist()
            row = {"doc": {"id": f"g{i}", "problem": f"Question {i}?", "answer": "7"}}
            row |= {"resps": [[f"answer {i} {k}" for k in range(4)]], "exact_matches": right}
            file.write(json.dumps({**row, "num_tokens": rng.integers(20, 900, 4).tolist()}) + "\n")


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
