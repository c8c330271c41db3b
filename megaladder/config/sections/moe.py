"""What a run chooses about a mixture of experts: how its router is kept in balance."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megaladder.config.base import StrictModel

Coefficient = Annotated[float, Field(ge=0.0)]


class MoeSection(StrictModel):
    """Balance of experts. Read for models that have some; refused for dense ones."""

    aux_loss: Literal["none", "sequence", "global_batch"] = "none"
    """Auxiliary loss that pulls the router towards equal use: E · Σ share of tokens · mean score,
    over each sequence (DeepSeek-V3), or over all ranks' micro-batches of the step so far
    (arXiv 2501.11873; exactly the whole batch where a step has one micro-batch)."""
    aux_loss_coef: Coefficient = 1.0e-3
    """Weight of that loss beside the main one. Both are means over tokens."""
    z_loss_coef: Coefficient = 0.0
    """Weight of the mean of log²(Σ exp router logits) (ST-MoE). 0 = off."""
    bias_update_rate: Coefficient = 0.0
    """Models whose router has a bias: how far it moves after a step, up for experts with fewer
    tokens than the mean and down for others (DeepSeek-V3, 1e-3 there). 0 = it stays."""
