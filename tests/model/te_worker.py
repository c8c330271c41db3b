"""Builds our model from Transformer Engine's layers on a machine without a GPU and says what it is
made of, as JSON on the last line.

Transformer Engine imports without a GPU, but its modules assert one when they are made; nothing of
them runs here. Run by test_te_layers.py in a process of its own, because it makes torch claim a
Hopper device.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["MEGALADDER_PLATFORM"] = "cpu"  # ours keeps to the CPU, whatever torch claims
import torch

from megaladder import parallel
from megaladder.parallel import Layout

RECIPES = (None, "tensorwise", "blockwise", "delayed", "mxfp8")


def claim_a_hopper() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0


def describe(chunk: torch.nn.Module) -> dict[str, str]:
    layer = chunk.decoder.layers[0]
    parts = {
        "linear_qkv": layer.self_attention.linear_qkv,
        "core_attention": layer.self_attention.core_attention,
        "linear_proj": layer.self_attention.linear_proj,
        "q_layernorm": layer.self_attention.q_layernorm,
        "linear_fc1": layer.mlp.linear_fc1,
        "linear_fc2": layer.mlp.linear_fc2,
        "input_layernorm": layer.input_layernorm,
        "final_layernorm": chunk.decoder.final_layernorm,
        "output_layer": chunk.output_layer,
    }
    return {name: type(module).__name__ for name, module in parts.items()}


def main() -> None:
    parallel.initialize(Layout())
    from megatron.core import dist_checkpointing
    from megatron.core.fp8_utils import get_fp8_recipe

    from megaladder.checkpoint.checkpointer import (
        _load_chunk,
        _model_state,
        _prepare_writer_queue,
        _stored_keys,
    )
    from megaladder.checkpoints_conv.families import random_tensors
    from megaladder.checkpoints_conv.live_model import iter_hf_tensors, load_tensors_into_chunks
    from megaladder.config.sections.gpu import GpuSection
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape

    shape = model_shape(
        {
            "model_type": "qwen3",
            "num_hidden_layers": 4,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 512,
        }
    )
    source = random_tensors(shape, 0)
    portable = build_chunks(shape, Layout(), BuildOptions("bf16", layers="portable"))
    load_tensors_into_chunks(portable, source, shape)
    plain = dict(iter_hf_tensors(portable, shape))
    claim_a_hopper()
    found: dict[str, object] = {}
    for recipe in RECIPES:
        gpu = GpuSection(first_last_layers_bf16=recipe == "tensorwise", fp8_amax_history_len=16)
        chunks = build_chunks(
            shape, Layout(), BuildOptions("bf16", fp8=recipe, gpu=gpu, layers="te")
        )
        load_tensors_into_chunks(chunks, source, shape)
        same = all(
            torch.equal(tensor, plain[name]) for name, tensor in iter_hf_tensors(chunks, shape)
        )
        found[str(recipe)] = {
            "modules": describe(chunks[0]),
            "same_weights": same,
            "recipe": type(get_fp8_recipe(chunks[0].config)).__name__ if recipe else None,
            "fused_accumulation": (
                chunks[0].decoder.layers[0].mlp.linear_fc1.fuse_wgrad_accumulation
            ),
            "dtypes": sorted({str(p.dtype) for p in chunks[0].parameters()}),
        }
    # a checkpoint of the portable layers goes into Transformer Engine's
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        # a helper process that ends with this one; megatron-core's would keep our pipes open
        _prepare_writer_queue()
        dist_checkpointing.save(_model_state(portable), str(path))
        load_tensors_into_chunks(chunks, random_tensors(shape, 1), shape)
        for state in [dist_checkpointing.load(_model_state(chunks, _stored_keys(path)), str(path))]:
            _load_chunk(chunks[0], state["model"])
        found["checkpoint"] = all(
            torch.equal(tensor, plain[name]) for name, tensor in iter_hf_tensors(chunks, shape)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch would ask the device that it claims to have at exit
