"""Logits of tiny HF models through megatron-core at one world size and several layouts. Run by
test_hf_parity.py.

torchrun --nproc-per-node W parity_worker.py CASES_JSON OUT_DIR      CASES_JSON: list of {"name",
"model", "tp", "pp", "vpp", "sp", "adapter"}; adapter: a PEFT folder, which is loaded, and written
again beside the logits, as NAME.adapter, with the merged model in NAME.merged
"""

import json
import sys
from pathlib import Path

import numpy as np

from megaladder import parallel
from megaladder.parallel import Layout

LENGTHS = (7, 33, 1, 20, 3)


def packed_tokens(vocab_size: int):
    """Five sequences laid end to end; the first and last tokens of the vocabulary occur."""
    from megaladder.types import IGNORE_INDEX, PackedBatch

    random = np.random.default_rng(1)
    sequences = [random.integers(0, vocab_size, length) for length in LENGTHS]
    sequences[0][:2] = (0, vocab_size - 1)
    labels = [np.append(tokens[1:], IGNORE_INDEX) for tokens in sequences]
    return sequences, PackedBatch(
        input_ids_t=np.concatenate(sequences),
        labels_t=np.concatenate(labels),
        position_ids_t=np.concatenate([np.arange(length) for length in LENGTHS]),
        cu_seqlens=np.cumsum([0, *LENGTHS], dtype=np.int32),
        max_seqlen=max(LENGTHS),
        sample_index=np.arange(len(LENGTHS)),
        num_tokens=sum(LENGTHS),
    )


def adapt(chunks: list, case: dict, shape, out: Path) -> None:
    """Loads the case's adapter and writes what was loaded."""
    from megaladder.checkpoints_conv.adapters.run import RunAdapters
    from megaladder.checkpoints_conv.live_model import export_hf
    from megaladder.config.sft import SftConfig

    given = {"model": {"path": case["model"]}, "data": {"path": "none"}}
    config = SftConfig(**given, lora={"start": case["adapter"]})
    adapters = RunAdapters(config, Path(case["model"]), shape, chunks)
    adapters.export(chunks, out / f"{case['name']}.adapter")
    export_hf(chunks, shape, out / f"{case['name']}.merged", source_dir=case["model"])


def run_case(case: dict, out: Path) -> None:
    layout = Layout(
        tp=case.get("tp", 1),
        pp=case.get("pp", 1),
        vpp=case.get("vpp"),
        sequence_parallel=case.get("sp", False),
        ep=case.get("ep", 1),
        etp=case.get("etp", 1),
    )
    parallel.initialize(layout)
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megaladder.checkpoints_conv.live_model import load_hf_into_chunks
    from megaladder.model.batch import to_device
    from megaladder.model.build import BuildOptions, build_chunks
    from megaladder.model.hf_config import model_shape, read_config_json

    shape = model_shape(read_config_json(case["model"]))
    adapter = case.get("adapter")
    chunks = build_chunks(shape, layout, BuildOptions(adapters=adapter is not None))
    load_hf_into_chunks(chunks, case["model"], shape)
    if adapter is not None:
        adapt(chunks, case, shape, out)
    batch = to_device(packed_tokens(shape.vocab_size)[1])

    def forward(iterator, model):
        return model.logits(next(iterator)), lambda logits, non_loss_data=False: logits

    import torch

    with torch.no_grad():
        collected = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=(
                [iter([batch] * layout.pp) for _ in chunks]
                if len(chunks) > 1
                else iter([batch] * layout.pp)
            ),
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=layout.pp,
            seq_length=batch.input_ids.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    if parallel.is_last_pipeline_stage() and parallel.tp_rank() == 0:
        np.save(out / f"{case['name']}.npy", collected[0].numpy())
    parallel_state.destroy_model_parallel()


def main() -> None:
    cases, out = sys.argv[1:3]
    for case in json.loads(cases):
        run_case(case, Path(out))
    parallel.barrier()


if __name__ == "__main__":
    main()
