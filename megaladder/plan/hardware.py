"""GPUs, links and known models from their YAML files.

And how fast a collective can be between ranks that are placed so."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megaladder.config.strict_yaml import load_yaml
from megaladder.errors import ConfigError
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json

HERE = Path(__file__).parent
GB = 1e9


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its links; units in the names (GB = 10^9 bytes, per direction).

    hardware.yaml says where each number is from."""

    name: str
    bf16_tflops: float
    fp8_tflops: float | None
    matmul_bf16_tflops: float
    matmul_fp8_tflops: float | None
    attention_tflops: float
    flash2_tflops: float
    memory_gib: float
    memory_gb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    gpus_per_node: int
    source: str
    clock: float = 1.0

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 1024**3)

    def peak(self, precision: str) -> float:
        """The data sheet's dense FLOP/s: what MFU is a share of."""
        return self._of(precision, self.bf16_tflops, self.fp8_tflops)

    def matmul(self, precision: str) -> float:
        """FLOP/s that the best matrix product reached, as far as the power limit allows."""
        return self._of(precision, self.matmul_bf16_tflops, self.matmul_fp8_tflops) * self.clock

    def attention(self, flash2: bool) -> float:
        """FLOP/s that the best fused bf16 attention reached, or FlashAttention-2 on this GPU."""
        return (self.flash2_tflops if flash2 else self.attention_tflops) * 1e12 * self.clock

    def _of(self, precision: str, bf16: float, fp8: float | None) -> float:
        if precision != "fp8":
            return bf16 * 1e12 / (2 if precision == "fp32" else 1)  # fp32 products run as TF32
        if fp8 is None:
            raise ConfigError(
                f"{self.name} has no FP8 units; fix: --precision bf16, or a GPU such as h200"
            )
        return fp8 * 1e12

    def link_bytes_per_s(self, group: int, stride: int) -> float:
        """Peak bytes/s per GPU of a ring over `group` ranks that are `stride` apart in rank order.

        Inside a node NVLink. Beyond it every member of the group in a node brings its own network
        adapter, and NVLink spreads what they receive: a group with all eight GPUs of each node
        moves eight adapters' worth (NCCL's rings and trees).
        """
        if group * stride <= self.gpus_per_node:
            return self.nvlink_gb_s * GB
        members = max(1, self.gpus_per_node // stride)
        return min(self.nvlink_gb_s, members * self.network_gb_s) * GB


@cache
def gpus() -> dict[str, Gpu]:
    """Name on the command line → GPU."""
    return {
        name: Gpu(**values) for name, values in load_yaml(HERE / "hardware.yaml").values.items()
    }


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError with the known names."""
    if name.lower() not in gpus():
        raise ConfigError(
            f"--gpu {name}: not known; fix: one of {', '.join(gpus())} (or add it to"
            " megaladder/plan/hardware.yaml)"
        )
    return gpus()[name.lower()]


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Published name → the keys of its config.json."""
    return load_yaml(HERE / "models.yaml").values


def find_model(name_or_dir: str) -> ModelShape:
    """A known name, or a folder with a config.json.

    Raises:
        ConfigError: neither; names near it.
        ModelError: a folder whose model is not supported.
    """
    if Path(name_or_dir).is_dir():
        return model_shape(read_config_json(name_or_dir))
    by_key = {name.lower(): values for name, values in known_models().items()}
    key = _plain_name(name_or_dir)
    if key in by_key:
        return model_shape(by_key[key])
    near = difflib.get_close_matches(key, by_key, n=3, cutoff=0.6)
    known = ", ".join(name for name in known_models() if name.lower() in near) or ", ".join(
        known_models()
    )
    raise ConfigError(
        f"--model {name_or_dir}: no such folder, and not a known name; fix: a folder with a"
        f" config.json, or one of {known}"
    )


def _plain_name(name: str) -> str:
    """`Qwen/Qwen3-14B-Base` → qwen3-14b; `meta-llama/Llama-3.3-70B-Instruct` → llama-3-70b.

    `internlm2_5-20b-llama` → internlm2.5-20b, whose Llama form has its sizes."""
    key = re.sub(
        r"(-(base|instruct|chat|hf|it|llama|2407))+$", "", name.rstrip("/").split("/")[-1].lower()
    )
    key = key.replace("internlm2_5", "internlm2.5")
    key = re.sub(r"^mistral-nemo$", "mistral-nemo-12b", key)
    key = re.sub(r"^meta-", "", key).replace("qwen2.5-math-", "qwen2.5-")
    return re.sub(r"^llama-3\.[13]-(8b|70b)$", r"llama-3-\1", key)
