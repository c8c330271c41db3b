"""The rules of the CUDA path.

What the values alone decide, what the model's shape decides, what the machine can do.
"""

from __future__ import annotations

from megaladder.capabilities import (
    FP8_BLOCK,
    LayerSizes,
    Machine,
    fp8_fix,
    fp8_problem,
    long_sequence_problem,
    sequence_alignment,
    token_alignment,
    version_text,
)
from megaladder.config.sections.gpu import GpuSection
from megaladder.config.sections.run import RunConfig
from megaladder.config.sections.shared import ParallelSection

_PRECISION_AWARE_TE = (2, 1)


def needs_static_shapes(parallel: ParallelSection, gpu: GpuSection) -> bool:
    """Whether every micro-batch has the same number of tokens.

    Pipeline stages exchange fixed shapes, user buffers have one size.
    """
    return parallel.pp > 1 or gpu.tp_comm_overlap


def gpu_problems(config: RunConfig) -> list[str]:
    """Violations that the values alone decide."""
    return [
        *_fp8_problems(config),
        *_length_problems(config),
        *_overlap_problems(config),
        *_memory_problems(config),
    ]


def _fp8_problems(config: RunConfig) -> list[str]:
    recipe, gpu, problems = config.train.fp8, config.gpu, []
    if recipe is not None and config.train.precision == "fp32":
        problems.append(
            f"train.fp8 {recipe} computes from bf16 weights, train.precision is fp32; fix:"
            " precision bf16, or fp8 null"
        )
    if gpu.first_last_layers_bf16:
        if recipe is None:
            problems.append(
                "gpu.first_last_layers_bf16 only means something with train.fp8; fix: train.fp8"
                " tensorwise, or leave it false"
            )
        if recipe == "delayed":
            problems.append(
                "gpu.first_last_layers_bf16 does not go with train.fp8 delayed (leaving and"
                " entering FP8 per layer breaks the reduction of its maxima); fix: train.fp8"
                " tensorwise or blockwise, or first_last_layers_bf16 false"
            )
        if gpu.num_layers_at_start_in_bf16 + gpu.num_layers_at_end_in_bf16 == 0:
            problems.append(
                "gpu.first_last_layers_bf16 with 0 layers at the start and at the end keeps none;"
                " fix: at least one of them 1"
            )
    if gpu.fp8_param_gather and recipe is None:
        problems.append(
            "gpu.fp8_param_gather needs train.fp8; fix: train.fp8 tensorwise, or fp8_param_gather"
            " false"
        )
    if gpu.fp8_param_gather and gpu.optimizer_cpu_offload:
        problems.append(
            "gpu.fp8_param_gather and gpu.optimizer_cpu_offload: the host's Adam writes no FP8"
            " weights; fix: one of them false"
        )
    return problems


def _length_problems(config: RunConfig) -> list[str]:
    layout, length, micro, problems = (
        config.parallel,
        config.data.seq_length,
        config.train.micro_batch_size,
        [],
    )
    per_sequence = sequence_alignment(layout.cp)
    if length % per_sequence:
        problems.append(
            f"data.seq_length {length} is not a multiple of 2·cp = {per_sequence}, into which"
            f" parallel.cp {layout.cp} cuts every sequence; fix: seq_length"
            f" {_up(length, per_sequence)}, or parallel.cp 1"
        )
    if layout.cp > 1 and config.train.precision == "fp32":
        problems.append(
            f"parallel.cp {layout.cp} needs Transformer Engine's packed attention, which takes no"
            " fp32 (train.precision); fix: precision bf16, or parallel.cp 1"
        )
    align = token_alignment(
        tp=layout.tp,
        cp=layout.cp,
        sequence_parallel=layout.uses_sequence_parallel,
        fp8=config.train.fp8,
    )
    # sequence_parallel alone has its own message (rules._layout); here it is FP8 or context
    # parallelism that asks for more
    stricter = align > (layout.tp if layout.uses_sequence_parallel else 1)
    if needs_static_shapes(layout, config.gpu) and stricter and (length * micro) % align:
        why = (
            "pipeline stages exchange full micro-batches"
            if layout.pp > 1
            else "gpu.tp_comm_overlap fixes their size"
        )
        problems.append(
            f"micro_batch_size {micro} × data.seq_length {length} = {length * micro} tokens is not"
            f" a multiple of {align}, which train.fp8 {config.train.fp8 or 'null'}, tp"
            f" {layout.tp}{' with sequence_parallel' if layout.uses_sequence_parallel else ''} and"
            f" cp {layout.cp} need ({why}); fix: seq_length {_up(length, align)}"
        )
    return problems


def _overlap_problems(config: RunConfig) -> list[str]:
    gpu, layout, problems = config.gpu, config.parallel, []
    if gpu.tp_comm_overlap and not layout.uses_sequence_parallel:
        problems.append(
            "gpu.tp_comm_overlap overlaps the gathers of sequence_parallel, which is off or"
            f" without effect (tp {layout.tp}); fix: tp ≥ 2 with sequence_parallel true, or"
            " tp_comm_overlap false"
        )
    if gpu.overlap_param_gather and not gpu.overlap_grad_reduce:
        problems.append(
            "gpu.overlap_param_gather needs gpu.overlap_grad_reduce (megatron-core gathers bucket"
            " by bucket); fix: both true, or overlap_param_gather false"
        )
    return problems


def _memory_problems(config: RunConfig) -> list[str]:
    gpu, train, problems = config.gpu, config.train, []
    types = {
        name: getattr(gpu, name)
        for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    }
    changed = {name: value for name, value in types.items() if value != "fp32"}
    if changed and not gpu.precision_aware_optimizer:
        what = ", ".join(f"gpu.{name} {value}" for name, value in changed.items())
        problems.append(
            f"{what} needs gpu.precision_aware_optimizer; fix: set it true, or leave the types at"
            " fp32"
        )
    if gpu.precision_aware_optimizer and train.precision == "fp32":
        problems.append(
            "gpu.precision_aware_optimizer needs bf16 weights, train.precision is fp32; fix:"
            " precision bf16, or leave it false"
        )
    if gpu.optimizer_cpu_offload and not gpu.precision_aware_optimizer:
        problems.append(
            "gpu.optimizer_cpu_offload needs gpu.precision_aware_optimizer (megatron-core's host"
            " optimizer uses its code); fix: set it true as well"
        )
    if gpu.activation_offload_layers and config.parallel.pp > 1:
        problems.append(
            f"gpu.activation_offload_layers {gpu.activation_offload_layers} does not go with"
            f" pipeline stages (pp {config.parallel.pp}); fix: pp 1, or train.recompute instead"
        )
    if gpu.activation_offload_layers and train.recompute != "none":
        problems.append(
            f"gpu.activation_offload_layers {gpu.activation_offload_layers} does not go with"
            f" train.recompute {train.recompute}; fix: one of them"
        )
    unknown = sorted(set(train.recompute_modules) - {"core_attn", "mlp"})
    if unknown or not train.recompute_modules:
        problems.append(
            f"train.recompute_modules {', '.join(unknown) or 'empty'}: not known; fix: core_attn,"
            " mlp, or both"
        )
    return problems


def layout_problems(config: RunConfig, shape: LayerSizes) -> list[str]:
    """Violations that the model's shape decides."""
    layout, gpu, recipe, problems = config.parallel, config.gpu, config.train.fp8, []
    if recipe is not None:
        block = FP8_BLOCK[recipe]
        features = {
            "hidden size": shape.hidden_size,
            **{
                f"{name} / tp {layout.tp}": size // layout.tp
                for name, size in shape.feed_forward_sizes.items()
            },
            f"attention width / tp {layout.tp}": (
                shape.num_attention_heads * shape.head_dim // layout.tp
            ),
            f"query, key and value width / tp {layout.tp}": (
                (shape.num_attention_heads + 2 * shape.num_query_groups)
                * shape.head_dim
                // layout.tp
            ),
        }
        problems += [
            f"train.fp8 {recipe} needs the model's {name} = {size} to be a multiple of {block};"
            " fix: a smaller tp, or"
            f" {'tensorwise (16)' if block > 16 and size % 16 == 0 else 'train.fp8 null'}"
            for name, size in features.items()
            if size % block
        ]
    per_stage = shape.num_layers // layout.pp
    if gpu.first_last_layers_bf16:
        problems += [
            f"gpu.{name} {count} is more than the {per_stage} layers of a pipeline stage; fix: at"
            f" most {per_stage}"
            for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
            if (count := getattr(gpu, name)) > per_stage
        ]
    if gpu.activation_offload_layers >= shape.num_layers:
        problems.append(
            f"gpu.activation_offload_layers {gpu.activation_offload_layers} is not below the"
            f" model's {shape.num_layers} layers; fix: at most {shape.num_layers - 1}"
        )
    if (
        layout.cp > 1
        and gpu.cp_comm_type == "a2a"
        and shape.num_query_groups % (layout.tp * layout.cp)
    ):
        problems.append(
            f"gpu.cp_comm_type a2a gives each rank whole heads: tp {layout.tp} × cp {layout.cp} ="
            f" {layout.tp * layout.cp} does not divide the model's {shape.num_query_groups}"
            " key/value groups; fix: cp_comm_type p2p, or a smaller cp"
        )
    return problems


def model_problems(config: RunConfig, shape: LayerSizes) -> list[str]:
    """Settings that this kind of model does not go with."""
    problems, limit, length = [], shape.longest_sequence, config.data.seq_length
    if limit is not None and length > limit:
        problems.append(long_sequence_problem("dynamic", limit, length))
    if shape.portable_only is not None:
        wishes = _te_wishes(config)
        if config.train.fp8 is not None:
            wishes[f"train.fp8 {config.train.fp8}"] = "train.fp8 null"
        problems += [
            f"{what} needs Transformer Engine's layers, which do not compute this model's"
            f" {shape.portable_only}; fix: {fix}"
            for what, fix in wishes.items()
        ]
    elif shape.sliding_window is not None and config.parallel.cp > 1:
        problems.append(
            f"parallel.cp {config.parallel.cp} does not go with this model's sliding_window"
            f" {shape.sliding_window}; fix: parallel.cp 1"
        )
    return problems


def _te_wishes(config: RunConfig) -> dict[str, str]:
    """Settings that only Transformer Engine on CUDA provides → what would do without it."""
    gpu, wishes = config.gpu, {}
    if config.parallel.cp > 1:
        wishes[
            f"parallel.cp {config.parallel.cp} (attention that passes keys and values around the"
            " ranks)"
        ] = "parallel.cp 1"
    if gpu.tp_comm_overlap:
        wishes["gpu.tp_comm_overlap (user buffers)"] = "tp_comm_overlap false"
    if gpu.precision_aware_optimizer:
        wishes["gpu.precision_aware_optimizer (its fused Adam)"] = "precision_aware_optimizer false"
    if gpu.activation_offload_layers:
        wishes["gpu.activation_offload_layers (its offload hooks)"] = "activation_offload_layers 0"
    return wishes


def platform_problems(config: RunConfig, machine: Machine) -> list[str]:
    """What of this configuration the machine cannot do, each with the reason and a fix."""
    problems, recipe = [], config.train.fp8
    if recipe is not None and (reason := fp8_problem(recipe, machine)):
        problems.append(f"train.fp8 {recipe}: {reason}; fix: {fp8_fix(recipe, machine)}")
    missing = "this machine has no CUDA" if not machine.has_cuda else machine.te_problem
    if missing:
        problems += [
            f"{what} needs Transformer Engine on CUDA; {missing}; fix: {fix}, or run it there"
            for what, fix in _te_wishes(config).items()
        ]
    elif (
        config.gpu.precision_aware_optimizer
        and machine.te is not None
        and machine.te < _PRECISION_AWARE_TE
    ):
        problems.append(
            "gpu.precision_aware_optimizer needs Transformer Engine"
            f" {version_text(_PRECISION_AWARE_TE)}, found {version_text(machine.te)}; fix: a newer"
            " one, or"
            " precision_aware_optimizer false"
        )
    if config.parallel.etp > 1 and not machine.has_cuda:
        problems.append(
            f"parallel.etp {config.parallel.etp} gathers unequal numbers of tokens, which gloo"
            " does not; this machine has no CUDA; fix: parallel.etp 1 (ep instead)"
        )
    problems += _without_effect(config, machine)
    if config.train.profile_steps and config.train.profiler == "nsys" and not machine.has_cuda:
        problems.append(
            "train.profiler nsys marks ranges on a CUDA device; this machine has no CUDA; fix:"
            " profiler torch"
        )
    return problems


def _without_effect(config: RunConfig, machine: Machine) -> list[str]:
    """Keys that mean nothing to the weights or the device that there are."""
    train, problems = config.train, []
    weights = "bf16" if machine.has_cuda else "fp32"
    weights = weights if train.precision == "auto" else train.precision
    if train.logits != "auto" and weights == "fp32":
        problems.append(
            f"train.logits {train.logits} is a choice for bf16 weights, these are fp32"
            f" (train.precision {train.precision}); fix: logits auto, or precision bf16"
        )
    if not machine.has_cuda:
        problems += [
            f"gpu.{name} false: this machine has no CUDA, where nothing overlaps anyway; fix: leave"
            " it out, or run it there"
            for name in ("overlap_grad_reduce", "overlap_param_gather")
            if not getattr(config.gpu, name)
        ]
    return problems


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
