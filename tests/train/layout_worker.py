"""Trains a tiny model for a few steps at several layouts and writes loss and gradient norm of each
step.

    torchrun --nproc-per-node W layout_worker.py MODEL_DIR CASES_JSON OUT_JSON

CASES_JSON: list of {"name", "tp", "pp", "vpp", "cp", "sp", "micro", "packing", "loss",
"recompute", "model", "steps", "lora", "ep", "etp", "moe", "routed"}; W ranks, what is left is DP. lora: targets of adapters of
rank 4, or "all". Not a test itself: `test_layout_invariance.py` and `moe/test_layouts.py`
run it.
"""

import math
from dataclasses import replace

import numpy as np
from train.run_cases import main

from megaladder import parallel
from megaladder.parallel import Layout

NUM_STEPS = 3
NUM_SAMPLES = 8
SEQ_LENGTH = 64


def samples(vocab_size: int) -> list:
    """NUM_SAMPLES · NUM_STEPS samples of 5…SEQ_LENGTH tokens with a prompt, an advantage and old
    log-probs."""
    from megaladder.types import TokenSample

    random = np.random.default_rng(0)
    out = []
    for index in range(NUM_SAMPLES * NUM_STEPS):
        length = int(random.integers(5, SEQ_LENGTH + 1))
        mask = np.arange(length) >= int(random.integers(1, 4))
        out.append(
            TokenSample(
                id=str(index),
                input_ids=random.integers(0, vocab_size, length).astype(np.int32),
                loss_mask=mask,
                advantage=float(random.normal()),
                old_logprobs_n=random.normal(-6.2, 0.5, length).astype(np.float32),
            )
        )
    return out


def engine_experts(index: int, length: int, sizes: tuple[int, int, int]) -> np.ndarray:
    """K experts for every token of sample `index` and every layer, drawn at random: int16 [N,
    layers, K]. sizes: layers, E, K."""
    num_layers, num_experts, top_k = sizes
    scores = np.random.default_rng([1, index]).random((length, num_layers, num_experts))
    return scores.argsort(-1)[..., :top_k].astype(np.int16)


def run_case(model_dir: str, case: dict) -> dict:
    import megatron.core.parallel_state as parallel_state

    layout = Layout(
        tp=case.get("tp", 1),
        pp=case.get("pp", 1),
        vpp=case.get("vpp"),
        cp=case.get("cp", 1),
        sequence_parallel=case.get("sp", False),
        ep=case.get("ep", 1),
        etp=case.get("etp", 1),
    )
    parallel.initialize(layout)
    from megaladder.capabilities import sequence_alignment
    from megaladder.checkpoints_conv.live_model import load_hf_into_chunks
    from megaladder.config.sections.moe import MoeSection
    from megaladder.config.sections.shared import OptimSection
    from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
    from megaladder.kernels import linear_common
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.head import HeadOptions
    from megaladder.model.hf_config import model_shape, read_config_json
    from megaladder.model.moe.balance import step_balance
    from megaladder.train.objectives.losses import sft_head, sft_loss
    from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
    from megaladder.train.step import run_micro_batches
    from megaladder.types import TokenWeighting

    model_dir = case.get("model", model_dir)
    linear_common._CPU_SCRATCH = case.get("scratch", 8 << 20)
    shape = model_shape(read_config_json(model_dir))
    lora = case.get("lora")
    options = BuildOptions(
        recompute=case.get("recompute", "none"),
        moe=MoeSection(**case.get("moe", {})),
        adapters=lora is not None,
    )
    chunks = build_chunks(shape, layout, options)
    load_hf_into_chunks(chunks, model_dir, shape)
    if lora is not None:
        from lora.adapter_cases import give_adapters

        give_adapters(chunks, shape, lora)
    wrapped = wrap_chunks(chunks)
    optim = OptimSection(lr=1e-3)
    optimizer = build_optimizer(wrapped, optim, options)
    loss = sft_loss(TokenWeighting(case.get("loss", "vanilla")), clip_low=1.0, clip_high=20.0)
    head = (
        sft_head(TokenWeighting(case.get("loss", "vanilla")), loss)
        if case.get("fused", True)
        else HeadOptions()
    )
    data = samples(shape.vocab_size)
    if case.get("routed"):
        sizes = (shape.num_layers, shape.moe.num_experts, shape.moe.top_k)
        data = [
            replace(one, routed_experts_n=engine_experts(index, one.num_tokens, sizes))
            for index, one in enumerate(data)
        ]
    spec = PackSpec(
        seq_length=SEQ_LENGTH,
        micro_batch_size=case.get("micro", 1),
        packing=case.get("packing", True),
        static=layout.pp > 1,
        align=math.lcm(
            layout.cp * (layout.tp if layout.uses_sequence_parallel else 1),
            sequence_alignment(layout.cp),
        ),
        sequence_align=sequence_alignment(layout.cp),
        micro_batches_multiple_of=layout.pp if layout.num_chunks > 1 else 1,
    )
    steps, balances, choices = [], [], []
    for step in range(case.get("steps", NUM_STEPS)):
        ids = np.arange(step * NUM_SAMPLES, (step + 1) * NUM_SAMPLES)
        plan = plan_global_batch([data[i].num_tokens for i in ids], ids, spec, parallel.dp_size())
        batches = build_micro_batches(plan, parallel.dp_rank(), lambda i: data[i])
        zero_grad(wrapped, optimizer)
        sums = run_micro_batches(wrapped, batches, loss, head=head)
        grad_norm, _ = guarded_update(optimizer, sums.loss, lr=1e-3)
        steps.append([sums.mean_loss, grad_norm, sums.num_loss_tokens])
        balance = step_balance(wrapped, shape)
        balances.append([] if balance is None else [one.load.tolist() for one in balance.layers])
        choices.append({} if balance is None else balance.choices())
    parallel_state.destroy_model_parallel()
    return {"name": case["name"], "steps": steps, "loads": balances, "choices": choices}


if __name__ == "__main__":
    main(run_case)
