"""What a run's GPU choices become in megatron-core's configurations; needs neither Transformer
Engine nor a GPU.

megatron-core's own checks run too (its configuration classes are built), so a field it would refuse
fails here.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from megaladder import platform

platform.prepare_megatron()
from megatron.core.distributed import DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

from megaladder.config.sections.gpu import GpuSection  # noqa: E402
from megaladder.config.sections.shared import OptimSection  # noqa: E402
from megaladder.model.build import BuildOptions  # noqa: E402
from megaladder.model.te import RotaryTable, transformer_fields  # noqa: E402
from megaladder.train.optimizer import ddp_fields, optimizer_fields  # noqa: E402

OPTIM = OptimSection(lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95))
SHAPE = {
    "num_layers": 8,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "bf16": True,
    "params_dtype": torch.bfloat16,
    "pipeline_dtype": torch.bfloat16,
}


def built(recipe: str | None = None, cp: int = 1, **gpu: object) -> TransformerConfig:
    fields = transformer_fields(recipe, GpuSection(**gpu), cp)
    # its kernel is Transformer Engine's: the field is refused where that is absent
    assert fields.pop("apply_rope_fusion")
    return TransformerConfig(**SHAPE, **fields, context_parallel_size=cp)


@pytest.mark.parametrize(
    ("recipe", "gpu", "expected"),
    [
        (
            None,
            {},
            {
                "fp8": None,
                "fp8_param": False,
                "first_last_layers_bf16": False,
                "tp_comm_overlap": False,
            },
        ),
        ("tensorwise", {}, {"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_param": False}),
        ("blockwise", {}, {"fp8": "e4m3", "fp8_recipe": "blockwise"}),
        ("blockwise", {"fp8_format": "hybrid"}, {"fp8": "hybrid", "fp8_recipe": "blockwise"}),
        (
            "delayed",
            {},
            {
                "fp8": "hybrid",
                "fp8_recipe": "delayed",
                "fp8_amax_history_len": 1024,
                "fp8_amax_compute_algo": "max",
            },
        ),
        (
            "mxfp8",
            {"fp8_param_gather": True},
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True},
        ),
        (
            "tensorwise",
            {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 2},
            {
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 2,
                "num_layers_at_end_in_bf16": 1,
            },
        ),
        (None, {"tp_comm_overlap": True}, {"tp_comm_overlap": True}),
        (
            None,
            {"activation_offload_layers": 3},
            {"cpu_offloading": True, "cpu_offloading_num_layers": 3},
        ),
    ],
)
def test_transformer_config_of_each_choice(recipe: str | None, gpu: dict, expected: dict) -> None:
    config = built(recipe, **gpu)
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.gradient_accumulation_fusion


def test_context_parallel_communication() -> None:
    assert built(cp=1).cp_comm_type is None
    assert built(cp=2).cp_comm_type == "p2p"
    assert built(cp=2, cp_comm_type="a2a").cp_comm_type == "a2a"


def test_bf16_layers_are_the_ones_named() -> None:
    from megatron.core.fp8_utils import is_first_last_bf16_layer

    config = built(
        "blockwise",
        first_last_layers_bf16=True,
        num_layers_at_start_in_bf16=1,
        num_layers_at_end_in_bf16=2,
    )
    assert [is_first_last_bf16_layer(config, layer) for layer in range(8)] == [
        True,
        *[False] * 5,
        True,
        True,
    ]


def test_what_our_rules_refuse_megatron_refuses_too() -> None:
    """Rules that repeat megatron-core's, so that ours may go when its check goes."""
    with pytest.raises(ValueError, match="Delayed scaling does not support first / last layer"):
        built("delayed", first_last_layers_bf16=True)
    with pytest.raises(ValueError, match="num_layers_at_start_in_bf16"):
        built("tensorwise", first_last_layers_bf16=True, num_layers_at_start_in_bf16=9)
    with pytest.raises(ValueError, match="layers less than"):
        built(activation_offload_layers=8)
    fields = transformer_fields(None, GpuSection(activation_offload_layers=2), 1)
    del fields["apply_rope_fusion"]
    with pytest.raises(ValueError, match="activation recomputation"):
        TransformerConfig(**SHAPE, **fields, recompute_granularity="selective")
    with pytest.raises(ValueError, match="Pipeline parallelism with CPU offloading"):
        TransformerConfig(**SHAPE, **fields, pipeline_model_parallel_size=2)


@pytest.mark.parametrize(
    ("fp8", "gpu", "on_cuda", "expected"),
    [
        (
            None,
            {},
            True,
            {"overlap_grad_reduce": True, "overlap_param_gather": True, "fp8_param_gather": False},
        ),
        (None, {}, False, {"overlap_grad_reduce": False, "overlap_param_gather": False}),
        (
            None,
            {"overlap_param_gather": False},
            True,
            {"overlap_grad_reduce": True, "overlap_param_gather": False},
        ),
        (
            "blockwise",
            {"fp8_param_gather": True},
            True,
            {"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": False},
        ),
        (
            "mxfp8",
            {"fp8_param_gather": True},
            True,
            {"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": True},
        ),
        (None, {"fp8_param_gather": True}, True, {"fp8_param_gather": False}),
    ],
)
def test_ddp_config_of_each_choice(
    fp8: str | None, gpu: dict, on_cuda: bool, expected: dict
) -> None:
    config = DistributedDataParallelConfig(
        **ddp_fields(BuildOptions("bf16", fp8=fp8, gpu=GpuSection(**gpu)), on_cuda=on_cuda)
    )
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.use_distributed_optimizer and config.grad_reduce_in_fp32


def test_optimizer_config_of_each_choice() -> None:
    plain = OptimizerConfig(**optimizer_fields(OPTIM, BuildOptions("bf16"), on_cuda=True))
    assert (
        plain.bf16,
        plain.use_precision_aware_optimizer,
        plain.overlap_param_gather,
        plain.fp8_recipe,
    ) == (True, False, True, None)
    assert plain.exp_avg_dtype == torch.float32
    gpu = GpuSection(
        precision_aware_optimizer=True,
        exp_avg_dtype="bf16",
        exp_avg_sq_dtype="fp8",
        main_params_dtype="fp16",
    )
    fields = optimizer_fields(OPTIM, BuildOptions("bf16", fp8="tensorwise", gpu=gpu), on_cuda=True)
    expected = {
        "exp_avg_dtype": torch.bfloat16,
        "exp_avg_sq_dtype": torch.uint8,
        "main_params_dtype": torch.float16,
        "use_precision_aware_optimizer": True,
        "fp8_recipe": "tensorwise",
    }
    assert {name: fields[name] for name in expected} == expected
    gpu = GpuSection(
        precision_aware_optimizer=True, optimizer_cpu_offload=True, optimizer_offload_fraction=0.5
    )
    fields = optimizer_fields(OPTIM, BuildOptions("bf16", gpu=gpu), on_cuda=True)
    assert (fields["optimizer_cpu_offload"], fields["optimizer_offload_fraction"]) == (True, 0.5)
    # its fused Adam is asked what it takes when the configuration is made
    if find_spec("transformer_engine") is not None:
        OptimizerConfig(**fields)
    mx = BuildOptions("bf16", fp8="mxfp8", gpu=GpuSection(fp8_param_gather=True))
    assert OptimizerConfig(
        **optimizer_fields(OPTIM, mx, on_cuda=True)
    ).reuse_grad_buf_for_mxfp8_param_ag


def test_transformer_engine_is_taken_in_bf16_where_it_is(monkeypatch) -> None:
    for present in (True, False):
        monkeypatch.setattr(platform, "has_transformer_engine", lambda present=present: present)
        assert BuildOptions("bf16").uses_te is present
        assert not BuildOptions("fp32").uses_te  # conversion checks run in fp32, on a GPU too
        assert (
            BuildOptions("bf16", layers="te").uses_te
            and not BuildOptions("bf16", layers="portable").uses_te
        )


def test_rotary_angles_are_positions_times_frequencies_however_long_the_table_grew() -> None:
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, 16, 2).float() / 16))
    table = RotaryTable(frequencies)
    short = table.angles(10)
    long = table.angles(5000)
    assert short.shape == (10, 1, 1, 16) and long.shape == (5000, 1, 1, 16)
    assert torch.equal(long[:10], short)
    assert torch.equal(long[4999, 0, 0, :8], 4999.0 * frequencies) and torch.equal(
        long[:, 0, 0, 8:], long[:, 0, 0, :8]
    )
