"""On a GPU only (`pytest -m gpu`): Transformer Engine's layers compute what the portable ones do,
in bf16 and in each FP8 recipe.

Written without a GPU at hand and not run yet; `tools/gpu_acceptance.py` measures the same at real
sizes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from megaladder import parallel, platform
from megaladder.capabilities import fp8_problem
from megaladder.parallel import Layout
from megaladder.tools.acceptance.context import Context

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not platform.has_transformer_engine(), reason="no Transformer Engine on a CUDA device"
    ),
]
RECIPES = ("tensorwise", "blockwise", "delayed")


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """Every variant that this GPU runs, against portable fp32, at the tiny shape."""
    from megaladder.tools.acceptance.stages import parity

    folder: Path = tmp_path_factory.mktemp("parity")
    return parity.run(Context("te_parity", "cuda", "tiny", folder, folder, time.monotonic() + 480))


def test_bf16_agrees_with_the_portable_layers(figures: dict) -> None:
    ours, theirs = figures["portable_bf16"], figures["te_bf16"]
    assert theirs["logprob_mean_abs"] < max(0.02, 3 * ours["logprob_mean_abs"])
    assert theirs["grad_relative_error"] < max(0.05, 3 * ours["grad_relative_error"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_agrees_as_far_as_eight_bits_go(figures: dict, recipe: str) -> None:
    reason = fp8_problem(recipe, platform.machine())
    if reason:
        pytest.skip(reason)
    found = figures[f"te_{recipe}"]
    assert found["loss_relative_error"] < 0.03
    assert found["grad_relative_error"] < 0.3


def test_our_reasons_are_transformer_engines() -> None:
    from transformer_engine.pytorch import quantization

    machine = platform.machine()
    assert (fp8_problem("tensorwise", machine) is None) == quantization.check_fp8_support()[0]
    assert (
        fp8_problem("blockwise", machine) is None
    ) == quantization.check_fp8_block_scaling_support()[0]
    assert (fp8_problem("mxfp8", machine) is None) == quantization.check_mxfp8_support()[0]


@pytest.mark.parametrize("cp", [2, 4])
def test_context_parallel_slices_are_transformer_engines(cp: int) -> None:
    import transformer_engine_torch as tex

    from megaladder.model.context_parallel import rank_tokens

    cu_seqlens = np.cumsum([0, 8 * cp, 2 * cp, 16 * cp], dtype=np.int32)
    on_gpu = torch.from_numpy(cu_seqlens).cuda()
    for rank in range(cp):
        theirs = tex.thd_get_partitioned_indices(on_gpu, int(cu_seqlens[-1]), cp, rank)
        assert theirs.cpu().tolist() == rank_tokens(cu_seqlens, cp, rank).tolist()


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_fp8_weights_take_and_give_back_values_within_their_precision(recipe: str) -> None:
    """gpu.fp8_param_gather: loading quantises, exporting dequantises, and the optimizer's master
    copy is the value that was loaded."""
    from megaladder.checkpoints_conv.families import random_tensors
    from megaladder.checkpoints_conv.live_model import iter_hf_tensors, load_tensors_into_chunks
    from megaladder.config.sections.gpu import GpuSection
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.weights import is_quantized
    from megaladder.tools.acceptance.step_bench import OPTIMIZER, slice_of
    from megaladder.train.optimizer import build_optimizer, wrap_chunks

    reason = fp8_problem(recipe, platform.machine())
    if reason:
        pytest.skip(reason)
    parallel.initialize(Layout())
    shape = slice_of("tiny")
    source = random_tensors(shape, 0)
    options = BuildOptions("bf16", fp8=recipe, gpu=GpuSection(fp8_param_gather=True), layers="te")
    chunks = build_chunks(shape, Layout(), options)
    load_tensors_into_chunks(chunks, source, shape)
    weight = chunks[0].decoder.layers[0].mlp.linear_fc2.weight
    assert is_quantized(weight)
    name = "model.layers.0.mlp.down_proj.weight"
    truth = source.read(name).bfloat16().cuda()
    exported = dict(iter_hf_tensors(chunks, shape))[name]
    assert 0 < float((exported - truth).norm() / truth.norm()) < 0.05
    build_optimizer(wrap_chunks(chunks, options), OPTIMIZER, options)
    assert torch.equal(weight.main_param.view(truth.shape), truth.float())
    parallel.shutdown()
