"""The updates of one synthetic round at several layouts: loss, gradient norm, metric sums of each
mini-batch.

    torchrun --nproc-per-node W grpo_layout_worker.py MODEL_DIR CASES_JSON OUT_JSON

CASES_JSON: list of {"name", "objective", "tp", "pp", "vpp", "sp", "micro", "packing", "order",
"starved", "num_updates", "fused", "scratch"}. objective: one of OBJECTIVES, or a preset of the
configuration; scratch: bytes for logits. Not a test: `test_grpo_invariance.py` runs it. Each case
updates a real model through `rl.policy.Policy`'s functions.
"""

from dataclasses import replace

import numpy as np
from train.run_cases import main

from megaladder import parallel
from megaladder.parallel import Layout

SEQ_LENGTH = 64
NUM_GROUPS, N = 6, 4
OBJECTIVES = {
    "dapo": {
        "clip_low": 0.2,
        "clip_high": 0.28,
        "correction": "tis",
        "dual_clip": 3.0,
        "aggregation": "token_mean",
    },
    "gspo": {
        "ratio": "sequence",
        "clip_low": 0.05,
        "clip_high": 0.05,
        "correction": "sequence_mask",
        "correction_low": 0.9,
        "correction_high": 1.1,
        "off_policy_mask": 0.3,
        "aggregation": "sequence_mean_token_mean",
    },
    "cispo-kl": {
        "policy_loss": "cispo",
        "clip_low": 1.0,
        "clip_high": 5.0,
        "kl": "k3",
        "kl_coef": 0.1,
        "entropy_coef": 0.01,
        "correction": "icepop",
        "correction_low": 0.8,
        "aggregation": "sequence_mean_token_sum_norm",
        "max_tokens": 40,
    },
    "k1": {"kl": "k1", "kl_coef": 0.1, "aggregation": "sequence_mean_token_sum"},
    "k2-weighted": {"kl": "k2", "kl_coef": 0.1, "kl_importance_weight": True, "dual_clip": 2.0},
}


def table(vocab_size: int, starved: bool):
    """A round of 24 samples; `starved`: one sample, so that other data-parallel ranks have
    nothing."""
    from megaladder.train.rl.samples import SampleTable

    random = np.random.default_rng(0)
    count = 1 if starved else NUM_GROUPS * N
    prompts, responses = random.integers(2, 20, count), random.integers(1, 40, count)
    return SampleTable(
        1,
        0,
        0,
        tuple(f"p{i}" for i in range(count)),
        np.arange(count, dtype=np.int32) // N,
        prompts.astype(np.int64),
        responses.astype(np.int64),
        random.integers(0, vocab_size, int((prompts + responses).sum())).astype(np.int32),
        random.normal(-6.3, 0.1, int(responses.sum())).astype(np.float32),
        random.normal(size=count),
        {},
        {},
        {},
    )


def options_of(objective: str):
    from megaladder.config.sections.grpo import GrpoSection, RolloutSection
    from megaladder.train.objectives.policy_loss import PolicyLossOptions, options_from

    if objective in OBJECTIVES:
        return PolicyLossOptions(**OBJECTIVES[objective])
    section = GrpoSection.model_validate({"preset": objective, "dual_clip": 3.0})
    return options_from(section, RolloutSection(max_tokens=40))


def run_case(model_dir: str, case: dict) -> dict:
    import megatron.core.parallel_state as parallel_state

    layout = Layout(
        tp=case.get("tp", 1),
        pp=case.get("pp", 1),
        vpp=case.get("vpp"),
        sequence_parallel=case.get("sp", False),
    )
    parallel.initialize(layout)
    from megaladder.checkpoints_conv.live_model import load_hf_into_chunks
    from megaladder.config.sections.shared import OptimSection
    from megaladder.data.pack import PackSpec, build_micro_batches, plan_global_batch
    from megaladder.kernels import linear_common
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.head import HeadOptions
    from megaladder.model.hf_config import model_shape, read_config_json
    from megaladder.train.objectives.policy_loss import METRIC_MAX_NAMES, METRIC_NAMES
    from megaladder.train.optimizer import build_optimizer, guarded_update, wrap_chunks, zero_grad
    from megaladder.train.rl.policy import grpo_loss, token_logprobs
    from megaladder.train.rl.samples import split_round
    from megaladder.train.step import run_micro_batches

    shape = model_shape(read_config_json(model_dir))
    chunks = build_chunks(shape, layout, BuildOptions())
    load_hf_into_chunks(chunks, model_dir, shape)
    wrapped = wrap_chunks(chunks)
    optim = OptimSection(lr=2e-3)
    optimizer = build_optimizer(wrapped, optim, BuildOptions())
    options = options_of(case["objective"])
    linear_common._CPU_SCRATCH = case.get("scratch", 8 << 20)
    spec = PackSpec(
        seq_length=SEQ_LENGTH,
        micro_batch_size=case.get("micro", 1),
        packing=case.get("packing", True),
        static=layout.pp > 1,
        align=layout.tp if layout.uses_sequence_parallel else 1,
        micro_batches_multiple_of=layout.pp if layout.num_chunks > 1 else 1,
    )
    data = table(shape.vocab_size, case.get("starved", False))
    loss = grpo_loss(options)
    head = HeadOptions(
        temperature=0.9,
        entropy="grad" if options.needs_entropy else "value",
        loss=loss if case.get("fused", True) and not options.couples_tokens else None,
        skip_zero_advantage=options.only_advantages,
    )
    minis = []
    for part in split_round(
        data, 1 if case.get("starved") else 3, options.aggregation, options.max_tokens
    ):
        indices = part.indices[::-1] if case.get("order") == "reversed" else part.indices
        weight_of = dict(zip(part.indices.tolist(), part.weights_b.tolist(), strict=True))
        plan = plan_global_batch(
            data.lengths[indices].tolist(), indices.tolist(), spec, parallel.dp_size()
        )
        batches = build_micro_batches(
            plan, parallel.dp_rank(), lambda i, weight_of=weight_of: data.sample(i, weight_of[i])
        )
        old = token_logprobs(wrapped, batches, head)
        reference = [None if values is None else values + 0.05 for values in old]
        minis.append(
            [
                replace(
                    batch,
                    old_logprobs_t=values,
                    ref_logprobs_t=None if ref is None else ref.astype(np.float32),
                )
                for batch, values, ref in zip(batches, old, reference, strict=True)
            ]
        )
    updates = []
    for batches in minis[: case.get("num_updates")]:
        zero_grad(wrapped, optimizer)
        sums = run_micro_batches(
            wrapped,
            batches,
            loss,
            metric_names=METRIC_NAMES,
            maximum_names=METRIC_MAX_NAMES,
            head=head,
        )
        grad_norm, updated = guarded_update(optimizer, sums.loss, lr=2e-3)
        updates.append(
            {
                "loss": sums.mean_loss,
                "grad_norm": grad_norm,
                "tokens": sums.num_loss_tokens,
                "updated": updated,
                "metrics": sums.metrics,
                "maxima": sums.maxima,
            }
        )
    parallel_state.destroy_model_parallel()
    return {"name": case["name"], "updates": updates}


if __name__ == "__main__":
    main(run_case)
