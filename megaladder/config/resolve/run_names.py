"""Published run names → configuration.

`Qwen3-14B_Math-CoT-20k_lr5e-5_ep8_bs256[_ConstLR]` is the grammar of Rethinking SFT.

`overrides(name)` gives the keys that such a name stands for, over
`examples/recipes/rethinking/base.yaml`; the 33 overlay files there are exactly these keys. Layouts
are ours, for 8 H200 GPUs. Pure; no files are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from megaladder.errors import ConfigError

GRAMMAR = re.compile(
    r"(?P<model>[A-Za-z0-9.-]+)_(?P<data>[A-Za-z0-9.-]+)_lr(?P<lr>[0-9.]+e-?[0-9]+)_ep(?P<epochs>\d+)_bs(?P<batch>\d+)(?P<constant>_ConstLR)?"
)
# model → (folder below models/, tensor parallel, pipeline stages): tp divides heads and key/value
# groups, pp the layers
MODELS = {
    "Qwen3-1.7B": ("Qwen3-1.7B-Base", 2, 1),
    "Qwen3-4B": ("Qwen3-4B-Base", 4, 1),
    "Qwen3-8B": ("Qwen3-8B-Base", 4, 2),
    "Qwen3-14B": ("Qwen3-14B-Base", 4, 2),
    "Qwen2.5-1.5B": ("Qwen2.5-1.5B", 2, 1),
    "Qwen2.5-3B": ("Qwen2.5-3B", 2, 2),
    "Qwen2.5-7B": ("Qwen2.5-7B", 4, 2),
    "Qwen2.5-14B": ("Qwen2.5-14B", 4, 2),
    "InternLM2.5-20B": ("internlm2_5-20b-llama", 8, 1),
}
# data set → rows; published names are the file names
DATA_ROWS = {
    "Math-CoT-20k": 20_480,
    "Math-CoT-2.5k": 2_560,
    "Math-NoCoT-20k": 20_480,
    "Countdown-CoT-20k": 20_480,
    "Numina-Math-20k": 20_480,
    "DeepSeek-R1-20k": 20_480,
}
# checkpoints that the paper evaluates and its repositories carry
MEASURED_STEPS = (10, 20, 40, 80, 160, 320, 480, 640, 960, 1280)


@dataclass(frozen=True)
class RunName:
    """The parts of a name. `lr` keeps its spelling."""

    model: str
    data: str
    lr: str
    epochs: int
    batch: int
    constant: bool

    @property
    def steps(self) -> int:
        """Optimizer steps: whole batches an epoch, times epochs."""
        return DATA_ROWS[self.data] // self.batch * self.epochs

    def __str__(self) -> str:
        constant = "_ConstLR" if self.constant else ""
        return f"{self.model}_{self.data}_lr{self.lr}_ep{self.epochs}_bs{self.batch}{constant}"


def parse_run_name(name: str) -> RunName:
    """The parts of a run name.

    A name outside the grammar, or with an unknown model or data set, is a ConfigError.
    """
    match = GRAMMAR.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"run name {name!r}: expected {{Model}}_{{Data}}_lr{{lr}}_ep{{E}}_bs{{B}}[_ConstLR];"
            " fix: such a name"
        )
    for kind, known in (("model", MODELS), ("data", DATA_ROWS)):
        if match[kind] not in known:
            raise ConfigError(
                f"run name {name!r}: unknown {kind} {match[kind]!r}; fix: one of {', '.join(known)}"
            )
    return RunName(
        match["model"],
        match["data"],
        match["lr"],
        int(match["epochs"]),
        int(match["batch"]),
        bool(match["constant"]),
    )


def overrides(name: str) -> dict[str, Any]:
    """The keys of SftConfig that a name fixes, over the base file."""
    run = parse_run_name(name)
    folder, tp, pp = MODELS[run.model]
    keys: dict[str, Any] = {
        "run_dir": f"runs/rethinking/{name}",
        "model": {"path": f"models/{folder}"},
        "data": {"path": f"data/{run.data}.parquet"},
        "parallel": {"tp": tp, "pp": pp},
        "train": {"epochs": run.epochs, "global_batch_size": run.batch},
        "optim": {"lr": float(run.lr)},
        "checkpoint": {"keep_steps": [step for step in MEASURED_STEPS if step <= run.steps]},
    }
    if run.constant:
        keys["optim"] |= {"schedule": "constant"}
    return keys
