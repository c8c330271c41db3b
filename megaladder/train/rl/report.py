"""The printed lines, metrics and final table of a GRPO run, and its mismatch limit."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megaladder import parallel, platform
from megaladder.config.grpo import GrpoConfig
from megaladder.errors import RunStopped
from megaladder.ledger.book import Ledger, Phase
from megaladder.ledger.work import Work, total_work, update_work
from megaladder.log import RunLog, StepMetrics
from megaladder.model.lora.peft_config import start_notes
from megaladder.model.moe.balance import CollapseWatch
from megaladder.rollout.engine import Engine
from megaladder.rollout.weight_sync import SyncReport
from megaladder.run_dir import RunDir
from megaladder.train.rl.feed import RoundFeed
from megaladder.train.rl.policy import MiniBatch, Policy
from megaladder.train.rl.problems import ProblemFacts
from megaladder.train.rl.samples import SampleTable
from megaladder.train.trainer import Trainer, UpdateResult

CONSOLE_KEYS = ("reward", "accuracy", "entropy", "mismatch_mean", "moe_max_load")


class GrpoReport:
    """The contents of a GRPO run's life (`life.run_life.RunContents`). Built on every rank.

    trainer: None when nothing is trained. rollouts: set once they are open.
    """

    log: RunLog
    rollouts: RoundFeed | None = None

    def __init__(
        self, config: GrpoConfig, run: RunDir, facts: ProblemFacts, trainer: Trainer | None
    ) -> None:
        self._config, self._run, self._facts, self._trainer = config, run, facts, trainer
        self.title = "GRPO finished" if trainer is not None else "rollouts finished"
        self.cursor = 0  # the problem stream's position after the last step
        self._left_out: Counter[str] = Counter()
        self._rewards: dict[int, float] = {}
        self._collapse = CollapseWatch()
        self.ledger = Ledger()
        self._step_began = time.perf_counter()
        self._phases: defaultdict[str, float] = defaultdict(float)

    def identity(self) -> dict[str, Any]:
        """Hashes of problems and tokenizer."""
        return self._facts.identity

    def state(self, step: int) -> dict[str, Any]:
        """Stream position, rewards and counts after `step`, for the checkpoint."""
        return {
            "cursor": self.cursor,
            "left_out": dict(self._left_out),
            "rewards": {str(key): value for key, value in self._rewards.items()},
            "ledger": self.ledger.state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.cursor = saved["cursor"]
        self._left_out.update(saved["left_out"])
        self._rewards = {int(key): value for key, value in saved["rewards"].items()}
        self.ledger.restore(saved.get("ledger", {}))

    def begin(self, log: RunLog, step: int) -> None:
        """Says what is trained on what."""
        self.log = log
        config = self._config
        if self._trainer is not None:
            shape = self._trainer.shape
            log.info(
                f"model {config.model.path}: {shape.hf_family}, {shape.num_parameters:,}"
                f" parameters; layout {self._trainer.layout}·dp{parallel.dp_size()} on"
                f" {platform.device().type}, {parallel.world_size()} rank(s)"
            )
        for line in (*self._facts.lines, *config.unread, *start_notes(config.lora)):
            log.info(line)
        per_step = config.grpo.prompts_per_step * config.rollout.n
        log.info(
            f"{config.grpo.preset}: {config.grpo.prompts_per_step} prompts × {config.rollout.n} ="
            f" {per_step} completions a step, {config.grpo.mini_batches} update(s), lag"
            f" {config.grpo.lag}; engine {config.rollout.engine}"
        )

    def before_save(self) -> None:
        """Waits for the round that is being made: no thread may hold a lock when writers fork."""
        if self.rollouts is not None:
            self.rollouts.settle()

    def note_engine(self, engine: Engine | None) -> None:
        if engine is not None:
            self.log.info(
                "engine: " + ", ".join(f"{key} {value}" for key, value in engine.describe().items())
            )

    def start_step(self) -> None:
        """The clock of a step starts here: everything up to `record` counts."""
        self._step_began = time.perf_counter()
        self._phases.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds of the body count as this phase of the step."""
        began = time.perf_counter()
        yield
        self._phases[name] += time.perf_counter() - began

    def record(
        self,
        step: int,
        table: SampleTable,
        minis: Sequence[MiniBatch],
        results: Sequence[UpdateResult],
        policy: Policy | None,
    ) -> None:
        """Writes one step's line and metrics.jsonl row; enforces the mismatch limit.

        The run stops past the limit before the step is saved.

        Seconds: rollouts_s is what the step waited for its round (generation_s and grading_s are
        rank 0's thread, which works beside the training at lag 1); what no phase took is other_s.
        Saving comes after the row and counts for no step. FLOP/s and MFU are those of updates and
        log-prob passes over their seconds; the engine's work is in `flops` and in the ledger.

        Raises:
            RunStopped: mean |Δ log-prob| between trainer and engine above grpo.mismatch_limit.
        """
        self.cursor = table.cursor
        self._left_out.update(
            {key: int(table.metrics[key]) for key in LEFT_OUT if table.metrics.get(key)}
        )
        self._rewards[step] = float(table.metrics["reward"])
        step_s = time.perf_counter() - self._step_began
        update_s = sum(result.step_s for result in results)
        seconds = {
            "sync": 0.0,
            **self._phases,
            "logprobs": policy.logprobs_s if policy else 0.0,
            "update": update_s,
        }
        seconds["other"] = max(0.0, step_s - sum(seconds.values()))
        seconds |= table.seconds
        learned = (
            loss_metrics(results, first_only=policy.old_is_rollout) if policy and results else {}
        )
        norms = [result.grad_norm for result in results]
        tokens = sum(mini.num_tokens for mini in minis)
        trainer = _trainer_work(minis, policy)
        booked = self.ledger.book({**table.work, **trainer})
        flops = total_work(trainer.values()).flops
        speed = flops / (update_s + seconds["logprobs"]) if results else 0.0
        balance = results[-1].balance if results else None
        self.log.step(
            StepMetrics(
                step=step,
                total_steps=self._facts.total_steps,
                loss=_mean([result.sums.mean_loss for result in results]),
                lr=results[-1].lr if results else 0.0,
                grad_norm=_mean(norms),
                tokens=tokens,
                step_s=step_s,
                loss_tokens=sum(result.sums.num_loss_tokens for result in results),
                non_padding_share=(
                    tokens / sum(mini.total_tokens for mini in minis) if minis else None
                ),
                memory_bytes=platform.memory_peak_bytes(),
                flops=flops + total_work(table.work.values()).flops,
                flops_per_s=speed,
                mfu=platform.share_of_peak(speed, parallel.world_size()),
                extra={
                    **table.metrics,
                    **learned,
                    "version": table.version,
                    "updates": sum(result.updated for result in results),
                    **{f"{name}_s": value for name, value in seconds.items()},
                    "total_flops": self.ledger.flops,
                    **booked,
                    **(balance.metrics() if balance else {}),
                    # later updates have moved on
                    **(results[0].balance.choices() if results and results[0].balance else {}),
                },
                shown=CONSOLE_KEYS,
            )
        )
        if balance and (warning := self._collapse.warning(step, balance)):
            self.log.warn(warning)
        limit = self._config.grpo.mismatch_limit
        if learned.get("mismatch_mean", 0.0) > limit:
            raise RunStopped(
                f"step {step}: mean |Δ log-prob| between trainer and engine is"
                f" {learned['mismatch_mean']:.4g} nats, above grpo.mismatch_limit {limit:g}; fix:"
                " rollout.sync file, train.precision, a smaller optim.lr; then start again"
            )

    def note_sync(self, report: SyncReport | None) -> None:
        """Says the first transfer of a start, and each that was checked."""
        if report is not None and report.check is not None:
            self.log.info(
                f"weights version {report.version} in the engine: {report.num_bytes / 1e6:.1f} MB"
                f" in {report.seconds:.3f} s; {report.check}"
            )

    def rows(self) -> list[tuple[str, str]]:
        """Rewards and what was left out, for the final table."""
        rows = []
        if self._rewards:
            first, last = min(self._rewards), max(self._rewards)
            shown = (
                f"{self._rewards[first]:.3f} (step {first}) → {self._rewards[last]:.3f}"
                f" (step {last})"
            )
            rows.append(("reward", shown))
        left_out = (f"{count:,} {name.replace('_', ' ')}" for name, count in self._left_out.items())
        rows.append(("left out", ", ".join(left_out) or "nothing"))
        rows += self.ledger.lines()
        return [*rows, ("rollouts", str(self._run.path / "rollouts"))]


LEFT_OUT = (
    "zero_variance_groups",
    "missing_groups",
    "surplus_groups",
    "aborted_groups",
    "empty_left_out",
    "truncated_left_out",
    "truncated_completions",
    "undecided_answers",
    "undecided_left_out",
    "engine_restarts",
)


def _trainer_work(minis: Sequence[MiniBatch], policy: Policy | None) -> dict[Phase, Work]:
    """What updates and log-prob passes of a step cost; nothing where nothing was trained."""
    if policy is None:
        return {}
    updates = (
        update_work(mini.forward, policy.shape, mini.head_tokens, frozen=policy.frozen)
        for mini in minis
    )
    return {"train": total_work(updates), **policy.work}


def loss_metrics(results: Sequence[UpdateResult], *, first_only: bool = False) -> dict[str, float]:
    """The objective's sums over a step's updates as means, shares and maxima.

    Means are per token and in nats.

    first_only: trainer and engine are compared on the first update alone (later ones have moved
    on).
    """
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.sums.metrics)
    watch = results[0].sums.metrics if first_only else total
    tokens, compared = max(total["tokens"], 1.0), watch["mismatch_tokens"]
    maxima = [result.sums.maxima for result in results]
    found = {
        "entropy": total["entropy_sum"] / tokens,
        "ratio_mean": total["ratio_sum"] / tokens,
        "ratio_max": max(one["ratio_max"] for one in maxima),
        "clip_low_share": total["clip_low_count"] / tokens,
        "clip_high_share": total["clip_high_count"] / tokens,
        "dual_clip_share": total["dual_clip_count"] / tokens,
        "old_kl": total["old_kl_k3_sum"] / tokens,
        "policy_loss": total["policy_loss_sum"] / tokens,
    }
    if total["kl_loss_sum"] or total["ref_kl_k3_sum"]:
        found |= {
            "reference_kl": total["ref_kl_k3_sum"] / tokens,
            "kl_loss": total["kl_loss_sum"] / tokens,
        }
    if compared:
        found |= {
            "mismatch_mean": watch["mismatch_abs_sum"] / compared,
            "mismatch_max": (
                maxima[0]["mismatch_max"]
                if first_only
                else max(one["mismatch_max"] for one in maxima)
            ),
            "mismatch_k1": watch["mismatch_k1_sum"] / compared,
            "mismatch_k3": watch["mismatch_k3_sum"] / compared,
            "mismatch_outside_share": watch["mismatch_outside_count"] / compared,
            "correction_weight": total["correction_weight_sum"] / tokens,
            "correction_changed_share": total["correction_changed_count"] / tokens,
            "dropped_sequences": (
                total["correction_dropped_sequences"] + total["off_policy_dropped_sequences"]
            ),
        }
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
