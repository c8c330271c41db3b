"""The loss functions that a training step takes.

Each is a pure loss per token, summed over a micro-batch.
"""

from __future__ import annotations

from megaladder.model.batch import DeviceBatch
from megaladder.model.head import HeadOptions, HeadOutput, LossFunction, LossSums
from megaladder.train.objectives.token_loss import NEEDS_SEQUENCES, TokenLossInputs, token_losses
from megaladder.types import TokenWeighting


def sft_loss(
    mode: TokenWeighting, *, clip_low: float = 1.0, clip_high: float = 1.0
) -> LossFunction:
    """SFT's loss with one of the ten token weightings.

    The micro-batch must carry what the weighting needs (see `token_loss`).
    """

    def loss(output: HeadOutput, batch: DeviceBatch) -> LossSums:
        assert batch.loss_mask is not None
        inputs = TokenLossInputs(
            logprobs=output.logprobs,
            mask=batch.loss_mask,
            old_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            sequence_of_token=batch.sequence_of_token if mode in NEEDS_SEQUENCES else None,
            clip_low=clip_low,
            clip_high=clip_high,
            num_sequences=batch.num_sequences,
        )
        return LossSums(token_losses(mode, inputs).sum())

    return loss


def sft_head(mode: TokenWeighting, loss: LossFunction, logits: str = "auto") -> HeadOptions:
    """How the head computes the loss of a token weighting.

    A loss that is a sum over tokens is formed in the head; the sequence ratios take its log-probs.
    logits: as `train.logits`; auto = bf16.
    """
    return HeadOptions(loss=None if mode in NEEDS_SEQUENCES else loss, bf16_logits=logits != "fp32")


def held_out_loss(output: HeadOutput, batch: DeviceBatch) -> LossSums:
    """Plain cross-entropy in nats per loss token, whatever the training loss is.

    Quagmires' generalisation loss (arXiv 2510.01624).
    """
    return LossSums(-output.logprobs.sum())
