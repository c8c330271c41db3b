"""The loss head written out: full logits, log_softmax, gather. One rank only; in the place of ours
with MEGALADDER_TEST_PLAIN_HEAD=1."""

import os

import torch


def use_plain_head_if_asked() -> None:
    if not os.environ.get("MEGALADDER_TEST_PLAIN_HEAD"):
        return
    from megaladder import platform

    platform.prepare_megatron()
    from megaladder.model.head import HeadOutput, VocabularyHead
    from megaladder.types import IGNORE_INDEX

    def forward(self, hidden_states, batch, options, *, weight, vocab_size):
        labels = torch.where(batch.loss_mask, batch.labels, IGNORE_INDEX)
        logits = (
            torch.nn.functional.linear(hidden_states.squeeze(1), weight[:vocab_size])
            / options.temperature
        )
        logs = logits.log_softmax(-1)
        kept = labels != IGNORE_INDEX
        logprobs = torch.where(
            kept, logs.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1), 0.0
        )
        entropy = None
        if options.entropy != "none":
            entropy = torch.where(kept, -(logs.exp() * logs).sum(-1), 0.0)
            entropy = entropy if options.entropy == "grad" else entropy.detach()
        return HeadOutput(logprobs, entropy)

    VocabularyHead.forward = forward
