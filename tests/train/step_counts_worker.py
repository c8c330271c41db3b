"""What one optimizer step does, counted below autograd: operations, questions that a GPU would have
to answer before the host goes on, passes over the gradient buffer.

    torchrun --nproc-per-node 1 step_counts_worker.py MODEL_DIR CASES_JSON OUT_JSON

CASES_JSON: list of {"name", "worker": "sft" or "grpo"}. Not a test: `test_step_counts.py` runs it.
"""

import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train.run_cases import main

# Results whose value or shape the host needs: each makes a GPU's host wait.
QUESTIONS = (
    "_local_scalar_dense",
    "nonzero",
    "repeat_interleave.Tensor",
    "masked_select",
    "_unique2",
)

_ROOT = Path(__file__).resolve().parents[2]


class StepCounts(TorchDispatchMode):
    """Counts between `start` and `stop`; nothing outside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()
        self.active, self.in_head, self._buffers = False, False, {}

    def watch(self, chunks) -> None:
        """The gradient buffers of megatron-core's DDP; passes are counted in units of their size."""
        buffers = [buffer.grad_data for chunk in chunks for buffer in chunk.buffers]
        self.size = sum(buffer.numel() for buffer in buffers)
        self._buffers = {buffer.untyped_storage().data_ptr() for buffer in buffers}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.active:
            self._count(function, args)
        return function(*args, **(kwargs or {}))

    def _count(self, function, args) -> None:
        name = str(function).removeprefix("aten.")
        if self.in_head and not _view(function) and not name.startswith(("empty", "new_empty")):
            self.counts["head"] += 1
        if name.startswith(QUESTIONS):
            self.counts[f"question {name.split('.')[0]} {_asker()}"] += 1
        for argument, value in zip(function._schema.arguments, args, strict=False):
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                    continue
                if tensor.untyped_storage().data_ptr() in self._buffers and not _view(function):
                    written = argument.alias_info is not None and argument.alias_info.is_write
                    # of an embedding, the rows that it adds to
                    touched = args[2] if name.startswith("_index_put_impl_") else tensor
                    self.counts["written" if written else "read"] += touched.numel() / self.size


def _asker() -> str:
    """The innermost file of ours on the stack, or the library's."""
    frames = [Path(frame.filename) for frame in traceback.extract_stack()[:-3]]
    # relative to the checkout, in which the environment may lie
    places = [frame.relative_to(_ROOT) for frame in frames if frame.is_relative_to(_ROOT)]
    foreign = {"tests", "site-packages"}
    ours = [place.name for place in places if not foreign & set(place.parts)]
    return ours[-1] if ours else frames[-1].name


def _view(function) -> bool:
    """Whether the operation only looks at memory in another way."""
    returns = function._schema.returns
    return (
        bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    )


def run_case(model_dir: str, case: dict) -> dict:
    """The counts of the step's two halves; the step itself is the layout worker's."""
    worker = import_module(
        {"sft": "train.layout_worker", "grpo": "train.grpo_layout_worker"}[case["worker"]]
    )
    from megaladder.kernels.linear_loss import _LinearLoss
    from megaladder.model.head import VocabularyHead
    from megaladder.train import optimizer, step

    counter, found = StepCounts(), {}

    def counted(half: str, original):
        def call(*args, **kwargs):
            if kwargs.get("forward_only"):
                return original(*args, **kwargs)
            if half == "forward and backward":
                counter.watch(args[0])
                sizes = {name: p.numel() for c in args[0] for name, p in c.named_parameters()}
                width = args[0][0].module.config.hidden_size
                tokens = sum(len(batch.input_ids_t) for batch in args[1])
                found["micro_batches"] = len(args[1])
                found["gradients"] = sum(sizes.values()) / counter.size
                found["embedded"] = tokens * width / counter.size
            counter.counts, counter.active = Counter(), True
            result = original(*args, **kwargs)
            counter.active = False
            found[half] = dict(counter.counts)
            return result

        return call

    def of_the_head(original):
        def call(*args, **kwargs):
            counter.in_head = True
            result = original(*args, **kwargs)
            counter.in_head = False
            return result

        return call

    parts = {
        (step, "run_micro_batches"): "forward and backward",
        (optimizer, "guarded_update"): "optimizer",
    }
    with (
        counter,
        mock.patch.object(VocabularyHead, "forward", of_the_head(VocabularyHead.forward)),
        mock.patch.object(_LinearLoss, "backward", of_the_head(_LinearLoss.backward)),
        mock.patch.multiple(
            step,
            run_micro_batches=counted(parts[step, "run_micro_batches"], step.run_micro_batches),
        ),
        mock.patch.multiple(
            optimizer,
            guarded_update=counted(parts[optimizer, "guarded_update"], optimizer.guarded_update),
        ),
    ):
        worker.run_case(model_dir, {**case, "steps": 1, "num_updates": 1})
    return {"name": case["name"], **found}


if __name__ == "__main__":
    main(run_case)
