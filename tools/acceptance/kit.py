"""What an offline GPU machine lacks and how it gets there: parts by stage, as commands to copy."""

from __future__ import annotations

from importlib.util import find_spec

PARTS = {
    "core": ("megatron.core", "pydantic", "tyro"),
    "te": ("transformer_engine",),
    "vllm": ("vllm",),
}

TEXT = """\
The GPU machine (CPython 3.12, torch 2.11.0+cu130, triton 3.6; all that it has:
tools/env/gpu_machine.txt) has no network and lacks megatron-core, Transformer Engine, vLLM,
pydantic. Versions: megaladder/process/gpu_stack.py.

Here (with network, CPython 3.12), in the checkout:
    echo '/.gpu*/' >> "$(git rev-parse --git-path info/exclude)"
    python3 -m pip download --no-deps -d .gpu -r tools/env/gpu_kit_core_te.txt \\
        -r tools/env/gpu_kit_peers.txt
    NVTE_FRAMEWORK=pytorch NVTE_CUDA_ARCHS=90 MAX_JOBS=2 python3 -m pip wheel -w .gpu \\
        --no-build-isolation --no-deps transformer_engine_torch==2.12.0   # with torch 2.11.0
    python3 -m pip download --no-deps -d .gpu-vllm -r tools/env/gpu_kit_vllm.txt

There:
    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .gpu/*.whl
    export PYTHONPATH=/tmp/site:$PWD VLLM_USE_FLASHINFER_SAMPLER=0
    python3 tools/gpu_acceptance.py --budget-s 780     # again in the next call: it goes on

Stages kernel_checks and kernel_table need nothing of this but the peers, gpu_tests the rest only
for Transformer Engine's. torch's own cuDNN is put before the system's for every stage. Figures are
kept case by case in --work (runs/acceptance-cuda); records: docs/h200/*.json, page: docs/h200.md;
where only a few files come back: tar czf $OUT/h200.tgz docs/h200 docs/h200.md. vLLM 0.25.1 of the
lists has no trainer's side of the weight transfer: `file` is measured, `ipc` says why it was not
(it needs vLLM 0.28 or later)."""


def missing(needs: tuple[str, ...]) -> list[str]:
    """The parts of the kit that a stage needs and that cannot be found here, with their modules."""
    return [f"{part} ({name})" for part in needs for name in PARTS[part] if _absent(name)]


def _absent(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # the parent package is absent
        return True
