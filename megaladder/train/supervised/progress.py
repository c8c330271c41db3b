"""What happens around the steps of an SFT run: resume, held-out loss, log lines, checkpoints,
export, the last words."""

from __future__ import annotations

import shlex
import sys
import time

from megaladder import parallel, platform
from megaladder.config.sft import SftConfig
from megaladder.data.loader import BatchStats
from megaladder.log import RunLog, StepMetrics, open_run_log
from megaladder.run_dir import RunDir
from megaladder.train.objectives.losses import held_out_loss
from megaladder.train.resume import check_same_run, write_run_identity
from megaladder.train.supervised.data import SftData
from megaladder.train.trainer import Trainer, UpdateResult


class SftProgress:
    """The bookkeeping of one run. Built on every rank; only the main rank prints and writes."""

    def __init__(self, config: SftConfig, run: RunDir, trainer: Trainer, data: SftData) -> None:
        self._config, self._run, self._trainer, self._data = config, run, trainer, data
        self._total_steps = data.total_steps
        self._held_out: dict[int, float] = {}
        self._last_loss: float | None = None
        self._began = time.monotonic()
        self._tokens = 0
        self._saved: int | None = None
        self.log: RunLog | None = None

    def resume(self) -> int:
        """The number of steps already done (0 for a fresh run); model, optimizer, RNG and data
        position are restored to it."""
        path = self._trainer.resume_from()
        check_same_run(self._config, self._run, resuming=path is not None)
        step = 0
        if path is not None:
            saved = self._trainer.restore(path)
            self._data.loader.load_state_dict(saved["loader"])
            self._held_out = {int(key): value for key, value in saved["held_out"].items()}
            step = self._saved = saved["step"]
        identity = {
            **self._data.identity(),
            "num_parameters": self._trainer.shape.num_parameters,
            "num_ranks": parallel.world_size(),
        }
        write_run_identity(self._config, self._run, identity)
        kept = step or -1  # a fresh start measures the held-out loss of step 0 again
        self.log = open_run_log(self._run if parallel.is_main() else None, self._config, kept)
        self._introduce(step)
        return step

    def _introduce(self, step: int) -> None:
        shape, layout = self._trainer.shape, self._trainer.layout
        self.log.info(
            f"model {self._config.model.path}: {shape.hf_family}, {shape.num_parameters:,}"
            f" parameters, {self._config.model.init}"
        )
        self.log.info(
            f"layout {layout}·dp{parallel.dp_size()} on {platform.device().type},"
            f" {parallel.world_size()} rank(s)"
        )
        for line in self._data.describe():
            self.log.info(line)
        self.log.info(
            f"resumed after step {step} of {self._total_steps}"
            if step
            else f"{self._total_steps} steps"
        )

    def evaluation_due(self, step: int) -> bool:
        section = self._config.train
        if self._data.held_out is None:
            return False
        wanted = step == self._total_steps or (
            section.eval_every and step % section.eval_every == 0
        )
        return bool(wanted or (self._config.checkpoint.keep_best and self.save_due(step)))

    def evaluate(self, step: int) -> None:
        """Held-out loss: mean cross-entropy per loss token over all held-out samples."""
        if self._data.held_out is None:
            return
        total, count = 0.0, 0
        for batches, _ in self._data.held_out_batches():
            sums = self._trainer.evaluate(batches, held_out_loss)
            total, count = total + sums.loss, count + sums.num_loss_tokens
        self._held_out[step] = total / count
        self.log.info(
            f"held-out loss after step {step}: {self._held_out[step]:.4f} nats/token "
            f"({len(self._data.held_out)} samples, {count:,} tokens)"
        )
        self.log.held_out(step, self._held_out[step])

    def record(self, step: int, result: UpdateResult, stats: BatchStats) -> None:
        """One step's line and metrics.jsonl row."""
        self._last_loss = result.sums.mean_loss
        self._tokens += stats.num_tokens
        shape, peak = self._trainer.shape, platform.peak_flops_per_second()
        mfu = None
        if peak:
            flops = stats.num_tokens * shape.flops_per_token(
                stats.num_tokens / len(stats.sample_ids)
            )
            mfu = flops / result.step_s / (peak * parallel.world_size())
        self.log.step(
            StepMetrics(
                step=step,
                total_steps=self._total_steps,
                loss=result.sums.mean_loss,
                lr=result.lr,
                grad_norm=result.grad_norm,
                tokens=stats.num_tokens,
                step_s=result.step_s,
                loss_tokens=result.sums.num_loss_tokens,
                mfu=mfu,
                non_padding_share=stats.non_padding_share,
                memory_bytes=platform.memory_peak_bytes(),
                extra={
                    "epoch": stats.epoch,
                    "updated": result.updated,
                    "num_micro_batches": stats.num_micro_batches,
                },
            )
        )
        self._trainer.checkpoints.poll()

    def warn(self, text: str | None) -> None:
        if text:
            self.log.warn(text)

    def save_due(self, step: int) -> bool:
        section = self._config.checkpoint
        return (
            step == self._total_steps
            or step in section.keep_steps
            or bool(section.every and step % section.every == 0)
        )

    def save(self, step: int) -> None:
        """A checkpoint of this step; an HF folder beside it where the step is kept for good."""
        began = time.monotonic()
        self._trainer.checkpoints.save(
            step,
            {
                "step": step,
                "loader": self._data.loader.state_dict(),
                "num_ranks": parallel.world_size(),
                "layout": str(self._trainer.layout),
                "held_out_loss": self._held_out.get(step),
                "held_out": {str(key): value for key, value in self._held_out.items()},
                "loss": self._last_loss,
            },
        )
        self._saved = step
        self.log.info(
            f"checkpoint step_{step} {'started' if self._config.checkpoint.async_save else 'saved'}"
            f" in {time.monotonic() - began:.2f} s"
        )
        if (
            self._config.checkpoint.export_hf
            and step in self._config.checkpoint.keep_steps
            and step != self._total_steps
        ):
            self.log.info(f"exported {self._trainer.export(step)}")

    def finish(self, step: int) -> None:
        """Last checkpoint, export, and the table that ends with the next command."""
        if self._saved != step:
            self.save(step)
        self._trainer.checkpoints.close()
        rows = [
            ("steps", f"{step}"),
            (
                "last loss",
                (
                    f"{self._last_loss:.4f} nats/token"
                    if self._last_loss is not None
                    else "no step run"
                ),
            ),
        ]
        if self._held_out:
            first, last = min(self._held_out), max(self._held_out)
            rows.append(
                (
                    "held-out loss",
                    (
                        f"{self._held_out[first]:.4f} (step {first}) → {self._held_out[last]:.4f}"
                        f" (step {last})"
                    ),
                )
            )
        seconds = time.monotonic() - self._began
        rows += [("tokens", f"{self._tokens:,} in {seconds:.1f} s"), ("data", self._data.summary())]
        rows.append(("checkpoints", str(self._run.checkpoints)))
        following = (
            f"megaladder convert megatron-to-hf --megatron {self._run.checkpoints}/step_{step}"
            f" --out {self._run.hf_folder(step)}"
        )
        if self._config.checkpoint.export_hf:
            folder = self._run.hf_folder(step)
            if not (folder / "config.json").is_file():
                self._trainer.export(step)
            rows.append(("HF model", str(folder)))
            following = f"megaladder eval --model {folder} --benchmark gsm8k --data-dir DIR"
        parallel.barrier()
        self.log.finish("SFT finished", rows, following)

    def resume_hint(self) -> str:
        return "resume with: " + shlex.join(["megaladder", *sys.argv[1:]])
