"""megatron-core's DDP and distributed optimizer around our chunks, and one guarded update."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    USING_PYTORCH_OPTIMIZER,
    ChainedOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megaladder import platform
from megaladder.config.sections.shared import OptimSection
from megaladder.kernels import dispatch
from megaladder.model.build import BuildOptions, LadderGPT

# fp8 moments: scaled bytes
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}


def ddp_fields(options: BuildOptions, *, on_cuda: bool) -> dict[str, Any]:
    """The fields of megatron-core's DistributedDataParallelConfig.

    Gradients in fp32, reduce-scattered for the distributed optimizer.

    Overlap (CUDA; the CPU has no second stream): gradients are reduced while the backward computes,
    weights gathered while the next forward does. mxfp8 weights are gathered through the gradient
    buffer, as megatron-core asks.
    """
    gpu = options.gpu
    gathers_fp8 = options.fp8 is not None and gpu.fp8_param_gather
    return {
        "grad_reduce_in_fp32": True,
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": on_cuda and gpu.overlap_grad_reduce,
        "overlap_param_gather": on_cuda and gpu.overlap_param_gather,
        "fp8_param_gather": gathers_fp8,
        "reuse_grad_buf_for_mxfp8_param_ag": gathers_fp8 and options.fp8 == "mxfp8",
        "check_for_nan_in_grad": (
            False
        ),  # ours looks at the global norm, and skips instead of raising
    }


def optimizer_fields(
    optim: OptimSection, options: BuildOptions, *, on_cuda: bool
) -> dict[str, Any]:
    """The fields of megatron-core's OptimizerConfig.

    Master weights and moments are fp32 unless gpu.precision_aware_optimizer.
    """
    gpu = options.gpu
    ddp = ddp_fields(options, on_cuda=on_cuda)
    fields = {
        "optimizer": "adam",
        "lr": optim.lr,
        "min_lr": optim.min_lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_eps": optim.eps,
        "clip_grad": optim.clip_grad,
        "bf16": options.precision == "bf16",
        "params_dtype": options.dtype,
        "use_distributed_optimizer": True,
        "fp8_recipe": options.fp8,
        **{
            name: ddp[name]
            for name in ("overlap_param_gather", "reuse_grad_buf_for_mxfp8_param_ag")
        },
    }
    if gpu.precision_aware_optimizer:
        fields |= {
            "use_precision_aware_optimizer": True,
            **{
                name: _DTYPES[getattr(gpu, name)]
                for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
            },
        }
    if gpu.optimizer_cpu_offload:
        fields |= {
            "optimizer_cpu_offload": True,
            "optimizer_offload_fraction": gpu.optimizer_offload_fraction,
            "overlap_cpu_optimizer_d2h_h2d": True,
        }
    return fields


def wrap_chunks(
    chunks: list[LadderGPT], options: BuildOptions = BuildOptions()
) -> list[DistributedDataParallel]:
    """megatron-core DDP around each chunk, see `ddp_fields`."""
    config = DistributedDataParallelConfig(**ddp_fields(options, on_cuda=platform.overlaps()))
    # Pipeline stages reduce at the same time: a stage that does so alone slows down the others'
    # compute. Only the interleaved schedule
    # starts gathers for all stages; elsewhere each bucket starts the next.
    aligned = chunks[0].config.pipeline_model_parallel_size > 1
    config.align_param_gather = len(chunks) > 1 and config.overlap_param_gather
    # Bucketing only pays when communication overlaps computation; chunks after the first are small
    # enough not to need it.
    wrapped = [
        DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    model_config = chunks[0].config
    model_config.finalize_model_grads_func = _finalize_gradients

    def of_chunks(method: str) -> Any:
        functions = [getattr(chunk, method) for chunk in wrapped]
        return functions if len(functions) > 1 else functions[0]

    if config.overlap_grad_reduce:
        model_config.no_sync_func = of_chunks("no_sync")
        model_config.grad_sync_func = of_chunks("start_grad_sync") if aligned else None
    if config.align_param_gather:
        model_config.param_sync_func = of_chunks("start_param_sync")
    return wrapped


def _finalize_gradients(model: list[Any], num_tokens: Any = None, **options: Any) -> None:
    """megatron-core's gradient reductions without its division by `num_tokens`.

    Gradients are formed divided (`train.step`), which spares a pass over all of them and a wait for
    the count.
    """
    finalize_model_grads(model, None, **options)


def build_optimizer(
    wrapped: list[DistributedDataParallel], optim: OptimSection, options: BuildOptions
) -> ChainedOptimizer:
    """AdamW with fp32 master weights and moments sharded over data parallelism.

    Fused AdamW of Transformer Engine or apex where present, else torch's. Norms and biases get no
    weight decay.
    """
    optimizer = get_megatron_optimizer(
        OptimizerConfig(**optimizer_fields(optim, options, on_cuda=platform.overlaps())), wrapped
    )
    wrapped[0].module.config.grad_scale_func = optimizer.scale_loss
    _initialize_torch_state(optimizer)
    return optimizer


def separate_steps(optimizer: ChainedOptimizer) -> None:
    """Gives each parameter of a torch AdamW a step counter of its own, after a load.

    megatron-core gives all of them one shared tensor, which each would then advance.
    """
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            for state in part.optimizer.state.values():
                state["step"] = state["step"].clone()


def _let_torch_adam_load(cls: type[DistributedOptimizer]) -> None:
    """Lets megatron-core's loader find torch AdamW's `step` where it copies states.

    Its loader of `fully_reshardable` states copies every entry of a parameter's state, but `step`
    is not among what it loaded (it was restored before): it gets the value that is already there.
    """
    original = cls._set_main_param_and_optimizer_states

    def with_step(
        self: DistributedOptimizer,
        model_param: torch.nn.Parameter,
        tensors: dict[str, torch.Tensor],
    ) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(
            self, model_param, {**tensors, "step": state["step"]} if "step" in state else tensors
        )

    cls._set_main_param_and_optimizer_states = with_step


if USING_PYTORCH_OPTIMIZER:
    _let_torch_adam_load(DistributedOptimizer)


def _initialize_torch_state(optimizer: ChainedOptimizer) -> None:
    """Gives torch's AdamW zero moments and step 0.

    It creates them at its first update; a checkpoint may be loaded, or saved, before.
    """
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        if not isinstance(inner, torch.optim.AdamW):
            continue
        for group in inner.param_groups:
            for parameter in group["params"]:
                inner.state[parameter] = {
                    "step": torch.zeros(
                        (),
                        dtype=torch.float32,
                        device=parameter.device if group.get("fused") else "cpu",
                    ),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


class FusedUpdate:
    """Clipping, AdamW and the copy to 16-bit weights of one megatron-core optimizer, as one pass.

    In the place of three: megatron-core scales all gradients, runs its AdamW, then copies. States
    lie where that AdamW has them, so checkpoints do not know the difference.
    """

    def __init__(self, part: DistributedOptimizer) -> None:
        self._part = part
        self._copies = {
            id(main): copy
            for mains, copies in zip(
                part.shard_fp32_from_float16_groups, part.shard_float16_groups, strict=True
            )
            for main, copy in zip(mains, copies, strict=True)
        }

    @classmethod
    def of(cls, part: Any) -> FusedUpdate | None:
        """None where this optimizer is left to megatron-core.

        No float32 states (precision-aware, FP8 weights, on the host), or no Triton kernels."""
        if not isinstance(part, DistributedOptimizer) or part.is_stub_optimizer:
            return None
        config, inner = part.config, part.optimizer
        others = (
            config.use_precision_aware_optimizer,
            config.optimizer_cpu_offload,
            part.ddp_config.fp8_param_gather,
            not (
                isinstance(inner, torch.optim.AdamW) or bool(getattr(inner, "adam_w_mode", False))
            ),
        )
        if any(others) or dispatch.backend(platform.device()) != "triton":
            return None
        return cls(part)

    def step(self, grad_scale: float) -> None:
        """One update with the gradients times `grad_scale`; weights are gathered as ever."""
        inner = self._part.optimizer
        for group in inner.param_groups:
            if "step" in group or not isinstance(inner, torch.optim.AdamW):
                group["step"] = group.get("step", 0) + 1
            for main in group["params"]:
                if main.grad is not None:
                    self._step_one(main, group, inner.state[main], grad_scale)
        if not self._part.ddp_config.overlap_param_gather:
            for chunk in self._part.model_chunks:
                chunk.start_param_sync()

    def _step_one(
        self, main: torch.Tensor, group: dict[str, Any], state: dict[str, Any], grad_scale: float
    ) -> None:
        from megaladder.kernels.triton_kernels.adamw import AdamStep, adamw

        if "step" not in group:  # torch counts for each parameter
            state["step"] += 1
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(main)
        step = int(group["step"] if "step" in group else state["step"])
        beta1, beta2 = group["betas"]
        numbers = AdamStep(
            group["lr"], beta1, beta2, group["eps"], group["weight_decay"], step, grad_scale
        )
        moments = (state["exp_avg"], state["exp_avg_sq"])
        adamw(main.detach(), main.grad, moments, self._copies.get(id(main)), numbers)


def zero_grad(wrapped: list[DistributedDataParallel], optimizer: ChainedOptimizer) -> None:
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


@torch.no_grad()
def guarded_update(optimizer: ChainedOptimizer, loss: float, lr: float) -> tuple[float, bool]:
    """Clips and updates, unless the loss or the gradient norm is not finite.

    lr: of this update.

    Both are global numbers, equal on every rank, so every rank takes the same branch. Returns
    (gradient norm before clipping, updated). megatron-core's own `step` would clip by a NaN norm;
    hence its body is spelled out here with the check in the middle.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
    overflow = optimizer.prepare_grads()
    grad_norm = float("nan") if overflow else float(optimizer.get_grad_norm())
    if not (math.isfinite(grad_norm) and math.isfinite(loss)):
        return grad_norm, False
    updated = True
    for part in optimizer.chained_optimizers:
        fused, limit = FusedUpdate.of(part), part.config.clip_grad
        if fused is not None:
            fused.step(min(1.0, limit / (grad_norm + 1e-6)) if limit > 0.0 else 1.0)
        else:
            _clip(part, grad_norm)
            updated &= bool(part.step_with_ready_grads())
    return grad_norm, updated


def _clip(part: Any, grad_norm: float) -> None:
    """megatron-core's, a pass over all gradients where the norm is over the limit."""
    parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
    if parameters and part.config.clip_grad > 0.0:
        clip_grad_by_total_norm_fp32(
            parameters,
            max_norm=part.config.clip_grad,
            total_norm=grad_norm,
            use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
        )
