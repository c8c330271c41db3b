"""What an offline GPU machine lacks and how it gets there: the parts of ../shared/gpu_kit, by
stage, as commands to copy."""

from __future__ import annotations

from importlib.util import find_spec

PARTS = {
    "core": ("megatron.core", "pydantic", "tyro"),
    "te": ("transformer_engine",),
    "vllm": ("vllm",),
}

TEXT = """\
The GPU machine (CPython 3.12, torch 2.11+cu130, triton 3.6) has no network and lacks megatron-core,
Transformer Engine, vLLM and pydantic.

Here (with network), in the checkout:
    echo '/.gpu*/' >> .git/info/exclude
    bash ../shared/gpu_kit/prepare_wheels.sh .gpu core te     # 4 parts of at most 57 MiB
    bash ../shared/gpu_kit/prepare_wheels.sh .gpu-vllm vllm   # 7 parts, for rollout and grpo

There, once per part (a transfer takes 64 MiB, the tree included: copy one part at a time, then):
    bash .gpu/partN/unpack.sh       # pieces gather in /tmp/wheels and join themselves
After the last part:
    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site /tmp/wheels/*.whl
    export PYTHONPATH=/tmp/site:$PWD
    python3 tools/gpu_acceptance.py # repeat until every stage is done: finished ones are kept

Stages kernel_checks and kernel_table need nothing of this. Figures: docs/h200/*.json, page:
docs/h200.md; where only a few files come back: tar czf $OUT/h200.tgz docs/h200 docs/h200.md. On a
machine lent for ten minutes at a time, --budget-s 560 starts no stage that could not end in time;
the same command in the next call goes on, as long as --work (runs/acceptance-cuda) and docs/h200
are still there. vLLM 0.25.1 of the kit has no trainer-side weight transfer: `file` is measured,
`ipc` says why it was not (it needs vLLM 0.28 or later)."""


def missing(needs: tuple[str, ...]) -> list[str]:
    """The parts of the kit that a stage needs and that cannot be found here, with their modules."""
    return [f"{part} ({name})" for part in needs for name in PARTS[part] if _absent(name)]


def _absent(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # the parent package is absent
        return True
