"""What an SFT run says and remembers: held-out loss, step lines, the final table."""

from __future__ import annotations

from typing import Any

from megaladder import parallel, platform
from megaladder.config.sft import SftConfig
from megaladder.data.loader import BatchStats
from megaladder.ledger.book import Ledger
from megaladder.ledger.work import Work, forward_work, total_work, update_work
from megaladder.log import RunLog, StepMetrics
from megaladder.model.lora.peft_config import start_notes
from megaladder.model.moe.balance import CollapseWatch
from megaladder.train.objectives.losses import held_out_loss
from megaladder.train.supervised.data import SftData
from megaladder.train.trainer import Trainer, UpdateResult
from megaladder.types import required


class SftReport:
    """The contents of an SFT run's life (`life.run_life.RunContents`). Built on every rank."""

    title = "SFT finished"
    log: RunLog

    def __init__(self, config: SftConfig, trainer: Trainer, data: SftData) -> None:
        self._config, self._trainer, self._data = config, trainer, data
        self._held_out: dict[int, float] = {}
        self._last_loss: float | None = None
        self._collapse = CollapseWatch()
        self.ledger = Ledger()

    def identity(self) -> dict[str, Any]:
        """Hashes of data and tokenizer, size of the model."""
        return {
            **self._data.identity(),
            "num_parameters": self._trainer.shape.num_parameters,
            "num_ranks": parallel.world_size(),
        }

    def state(self, step: int) -> dict[str, Any]:
        """Data position and losses after `step`, for the checkpoint."""
        return {
            "loader": self._data.loader.state_dict(),
            "held_out_loss": self._held_out.get(step),
            "held_out": {str(key): value for key, value in self._held_out.items()},
            "loss": self._last_loss,
            "ledger": self.ledger.state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self._data.loader.load_state_dict(saved["loader"])
        self._held_out = {int(key): value for key, value in saved["held_out"].items()}
        self.ledger.restore(saved.get("ledger", {}))

    def begin(self, log: RunLog, step: int) -> None:
        """Says what is trained on what."""
        self.log = log
        shape, layout = self._trainer.shape, self._trainer.layout
        log.info(
            f"model {self._config.model.path}: {shape.hf_family}, {shape.num_parameters:,}"
            f" parameters, {self._config.model.init}"
        )
        log.info(
            f"layout {layout}·dp{parallel.dp_size()} on {platform.device().type},"
            f" {parallel.world_size()} rank(s)"
        )
        told = *self._config.unread, *start_notes(self._config.lora)
        for line in (*self._data.describe(), *told):
            log.info(line)

    def evaluation_due(self, step: int, saving: bool, last: bool) -> bool:
        """Whether the held-out loss is measured after `step`.

        Before the first and after the last step, as often as asked for, and with every checkpoint
        when the best ones are kept.
        """
        if self._data.held_out is None:
            return False
        every = self._config.train.eval_every
        if step == 0 or last or (every and step % every == 0):
            return True
        return saving and self._config.num_best_kept is not None

    def before_save(self) -> None:
        """Nothing works in the background."""

    def evaluate(self, step: int) -> None:
        """Held-out loss: mean cross-entropy per loss token over all held-out samples."""
        total, count, passes = 0.0, 0, []
        for batches, stats in self._data.held_out_batches():
            sums = self._trainer.evaluate(batches, held_out_loss)
            total, count = total + sums.loss, count + sums.num_loss_tokens
            passes.append(self._forward(stats, held_out=True))
        num_samples = len(self._data.held_out or ())
        self._held_out[step] = total / count
        self.log.info(
            f"held-out loss after step {step}: {self._held_out[step]:.4f} nats/token "
            f"({num_samples} samples, {count:,} tokens)"
        )
        work = self.ledger.book({"held_out": total_work(passes)})
        self.log.held_out(step, self._held_out[step], **work)

    def _forward(self, stats: BatchStats, *, held_out: bool = False) -> Work:
        """A forward pass over a global batch."""
        data = required(self._data.held_out, "held_out") if held_out else self._data.train
        lengths = data.lengths[stats.sample_ids]
        return forward_work(self._trainer.shape, lengths, stats.num_loss_tokens)

    def record(self, step: int, result: UpdateResult, stats: BatchStats) -> None:
        """One step's line and metrics.jsonl row."""
        self._last_loss = result.sums.mean_loss
        work = update_work(
            self._forward(stats),
            self._trainer.shape,
            stats.num_loss_tokens,
            frozen=self._trainer.adapters is not None,
        )
        booked, speed = self.ledger.book({"train": work}), work.flops / result.step_s
        self.log.step(
            StepMetrics(
                step=step,
                total_steps=self._data.total_steps,
                loss=result.sums.mean_loss,
                lr=result.lr,
                grad_norm=result.grad_norm,
                tokens=stats.num_tokens,
                step_s=result.step_s,
                loss_tokens=result.sums.num_loss_tokens,
                flops=work.flops,
                flops_per_s=speed,
                mfu=platform.share_of_peak(speed, parallel.world_size()),
                non_padding_share=stats.non_padding_share,
                memory_bytes=platform.memory_peak_bytes(),
                extra={
                    "epoch": stats.epoch,
                    "updated": result.updated,
                    "num_micro_batches": stats.num_micro_batches,
                    "total_flops": self.ledger.flops,
                    **booked,
                    **(result.balance.metrics() if result.balance else {}),
                },
                shown=("epoch", "num_micro_batches", "moe_max_load"),
            )
        )
        if result.balance and (warning := self._collapse.warning(step, result.balance)):
            self.log.warn(warning)

    def rows(self) -> list[tuple[str, str]]:
        """Losses, tokens and data of the final table."""
        loss = "no step run" if self._last_loss is None else f"{self._last_loss:.4f} nats/token"
        rows = [("last loss", loss)]
        if self._held_out:
            first, last = min(self._held_out), max(self._held_out)
            shown = (
                f"{self._held_out[first]:.4f} (step {first}) → {self._held_out[last]:.4f}"
                f" (step {last})"
            )
            rows.append(("held-out loss", shown))
        return [*rows, *self.ledger.lines(), ("data", self._data.summary())]
