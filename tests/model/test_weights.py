"""Weights are complete where they are read: chunks that gather lazily are told to, in order, and
only those."""

from __future__ import annotations

import torch

from megaladder.model.weights import gathered, is_quantized, plain_weight


class Lazy:
    """megatron-core's DDP as far as `gathered` knows it: with overlap_param_gather its hooks are on
    and its weights are not complete."""

    def __init__(self, use_forward_hook: bool) -> None:
        self.use_forward_hook, self.complete, self.hooks = (
            use_forward_hook,
            not use_forward_hook,
            use_forward_hook,
        )

    def disable_forward_pre_hook(self, param_sync: bool) -> None:
        assert self.hooks
        self.hooks, self.complete = False, param_sync

    def enable_forward_pre_hook(self) -> None:
        assert not self.hooks
        self.hooks = True


def test_lazy_chunks_are_complete_inside_and_as_before_after() -> None:
    lazy, eager, bare = Lazy(True), Lazy(False), torch.nn.Linear(2, 2)
    with gathered([lazy, eager, bare]):
        assert lazy.complete and not lazy.hooks
        assert eager.complete and not eager.hooks
    assert lazy.hooks and not eager.hooks


def test_ordinary_weights_are_given_as_they_are() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not is_quantized(parameter)
    assert plain_weight(parameter).data_ptr() == parameter.data_ptr()
