"""The verb `bench rollout`.

Tokens per second of our engine and of bare `vllm.LLM.generate`, same model, prompts and settings,
on this machine now.

Both run in turn, round by round, so that a busy machine hurts both alike; the bare one lives in a
child process of its own, with the same threads and engine arguments. Also: seconds until each can
generate. Not measured here: quality, long contexts (choose --prompt-tokens).
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from megaladder import platform
from megaladder.config.verbs.bench import BenchRolloutConfig
from megaladder.errors import EngineError
from megaladder.rollout.engine import SamplingParams
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions, child_environment
from megaladder.run_dir import atomic_write, to_json

WARM_UP_ROUNDS = 2
GPU_SHARE = 0.42  # of a GPU's memory for each of the two engines, which are alive at the same time
# The bare side: reads one JSON line with everything, then a line per round, and answers each with
# seconds and tokens.
BARE = """
import json, sys, time
if __name__ == "__main__":
    job = json.loads(sys.stdin.readline())
    begun = time.monotonic()
    from vllm import LLM, SamplingParams
    llm = LLM(**job["arguments"])
    logprobs = 0 if job["logprobs"] else None
    params = SamplingParams(
        max_tokens=job["max_tokens"], ignore_eos=True, temperature=1.0, logprobs=logprobs
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    print(json.dumps({"start_s": time.monotonic() - begun}), file=sys.stderr, flush=True)
    for line in sys.stdin:
        begun = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(one.token_ids) for output in outputs for one in output.outputs)
        llm.reset_prefix_cache()
        row = {"seconds": time.monotonic() - begun, "tokens": tokens}
        print(json.dumps(row), file=sys.stderr, flush=True)
"""


class _Bare:
    """The child that runs vLLM as its manual says."""

    def __init__(
        self, options: VllmOptions, arguments: dict[str, Any], job: dict[str, Any], folder: Path
    ):
        script = folder / "bare.py"
        script.write_text(BARE, encoding="utf-8")
        environment = {**os.environ, **child_environment(options, 0)}
        if arguments.pop("in_process"):
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._log = (folder / "bare.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._send({**job, "arguments": arguments})
        self.start_s = self._answer("start_s")["start_s"]

    def round(self) -> float:
        """Tokens per second of one round."""
        self._send({})
        answer = self._answer("seconds")
        return answer["tokens"] / answer["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _answer(self, key: str) -> dict[str, Any]:
        """The next line of ours among what vLLM prints."""
        last = ""
        for line in self._process.stderr:
            if line.startswith("{") and f'"{key}"' in line:
                return json.loads(line)
            last = line.strip() or last
        raise EngineError(f"bare vLLM ended with status {self._process.wait()}: {last}")


def run_bench_rollout(config: BenchRolloutConfig) -> int:
    """The verb."""
    rng = random.Random(config.seed)
    vocabulary = json.loads((Path(config.model) / "config.json").read_text(encoding="utf-8"))[
        "vocab_size"
    ]
    prompts = [
        [rng.randrange(vocabulary // 2) for _ in range(config.prompt_tokens)]
        for _ in range(config.num_prompts)
    ]
    length = config.prompt_tokens + config.max_tokens
    options = VllmOptions(
        model=config.model,
        tp=config.tp,
        dtype=config.dtype,
        max_model_len=length + 8,
        gpu_memory_utilization=GPU_SHARE,
    )
    params = SamplingParams(max_tokens=config.max_tokens, ignore_eos=True, logprobs=True)
    with tempfile.TemporaryDirectory() as folder, VllmEngine(options) as engine:
        job = {"prompts": prompts, "max_tokens": config.max_tokens, "logprobs": True}
        bare = _Bare(options, engine.call("engine_arguments")[0], job, Path(folder))
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(WARM_UP_ROUNDS + config.rounds):
            begun = time.monotonic()
            groups = engine.generate(prompts, params)
            engine.call("reset_prefix_cache")
            ours = sum(len(group[0].token_ids) for group in groups) / (time.monotonic() - begun)
            theirs = bare.round()
            if number >= WARM_UP_ROUNDS:
                rates["ours"].append(ours)
                rates["bare"].append(theirs)
        bare.close()
        result = _result(config, engine, rates, bare.start_s) | _phases(
            engine, prompts, params, statistics.median(rates["ours"])
        )
    _print(result)
    if config.json_path:
        atomic_write(config.json_path, to_json(result, sort_keys=True, indent=2) + "\n")
    return 0


def _phases(
    engine: VllmEngine, prompts: list[list[int]], params: SamplingParams, rate: float
) -> dict[str, Any]:
    """Seconds of a round's prefill and decode, and memory in use on the device.

    Prefill ends when every prompt has its first token."""
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        engine.generate(prompts, replace(params, max_tokens=1))
        seconds.append(time.monotonic() - begun)
        engine.call("reset_prefix_cache")
    prefill, whole = statistics.median(seconds), len(prompts) * params.max_tokens / rate
    return {
        "phases_s": {"prefill": prefill, "decode": max(0.0, whole - prefill)},
        "device_memory_bytes": platform.memory_in_use_bytes(),
    }


def _result(
    config: BenchRolloutConfig,
    engine: VllmEngine,
    rates: dict[str, list[float]],
    bare_start_s: float,
) -> dict[str, Any]:
    return {
        "engine": engine.describe(),
        "num_prompts": config.num_prompts,
        "prompt_tokens": config.prompt_tokens,
        "max_tokens": config.max_tokens,
        "rounds": config.rounds,
        "tokens_per_s_per_gpu": (
            statistics.median(rates["ours"]) / config.tp if platform.has_cuda() else None
        ),
        "start_up_s": {"ours": engine.start_up_s, "bare": bare_start_s},
        "tokens_per_s": {
            name: {"best": max(v), "median": statistics.median(v), "rounds": v}
            for name, v in rates.items()
        },
        "ratio_best": max(rates["ours"]) / max(rates["bare"]),
        "ratio_median": statistics.median(rates["ours"]) / statistics.median(rates["bare"]),
    }


def _print(result: dict[str, Any]) -> None:
    print(
        f"engine {result['engine']}; {result['num_prompts']} prompts × {result['prompt_tokens']}"
        f" tokens in, {result['max_tokens']} out"
    )
    for name, rate in result["tokens_per_s"].items():
        print(
            f"{name:<5} start-up {result['start_up_s'][name]:.1f} s   best {rate['best']:,.0f}"
            f" tokens/s   median {rate['median']:,.0f}"
        )
    phases = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result["phases_s"].items())
    per_gpu = result["tokens_per_s_per_gpu"]
    print(
        f"a round: {phases}; tokens/s/GPU"
        f" {f'{per_gpu:,.0f}' if per_gpu else 'not measured (no GPU here)'}"
    )
    print(
        f"ours/bare: best {result['ratio_best']:.3f}   median {result['ratio_median']:.3f}  "
        f" ({result['rounds']} rounds each, in turn)"
    )


if __name__ == "__main__":
    from megaladder.cli import main

    sys.exit(main(["bench", "rollout", *sys.argv[1:]]))
