"""Real vLLM on this machine's CPU, one engine for the whole file: its numbers against
transformers', its deaths, its weights.

About 40 s; the last test kills the engine, so that restarting is tried on the real thing too.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
from tiny_models import build_tiny_model
from waiting import is_alive, wait_until

from megaladder.errors import ConfigError, EngineError
from megaladder.evaluation import lm_eval_format, report
from megaladder.evaluation.run import Task, run_task
from megaladder.evaluation.store import Journal
from megaladder.rewards.worker import GradePool
from megaladder.rollout.engine import SamplingParams, expand
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.rollout.process_engine import Limits
from megaladder.rollout.vllm_engine import VllmEngine, VllmOptions
from megaladder.types import FinishReason, Message, Problem

PROMPTS = [tuple(range(5, 5 + length)) for length in (9, 17, 33)]
LOGPROB_TOLERANCE = 2e-4  # fp32 on both sides


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return build_tiny_model(folder / "first"), build_tiny_model(folder / "second", seed=1)


@pytest.fixture(scope="module")
def engine(models, tmp_path_factory):
    options = VllmOptions(
        str(models[0]),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=32,
        log_dir=str(tmp_path_factory.mktemp("log")),
    )
    with VllmEngine(options, Limits(start_s=200.0)) as engine:
        yield engine


def reference_logprobs(model_dir, prompt, completion, temperature: float) -> list[float]:
    """log-softmax(logits / T) of each sampled token, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.inference_mode():
        logprobs_tv = torch.log_softmax(model(ids).logits[0] / temperature, dim=-1)
    start = len(prompt)
    return [
        float(logprobs_tv[start + i - 1, token]) for i, token in enumerate(completion.token_ids)
    ]


def largest_gap(model_dir, groups, temperature: float) -> float:
    return max(
        abs(ours - theirs)
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for completion in group
        for ours, theirs in zip(
            completion.logprobs,
            reference_logprobs(model_dir, prompt, completion, temperature),
            strict=True,
        )
    )


def test_logprobs_are_those_of_the_sampled_distribution(engine, models):
    """`processed_logprobs`: after temperature, as the trainer computes them."""
    assert engine.describe()["engine"] == "vllm" and engine.health().ok
    params = SamplingParams(
        n=2, temperature=0.7, max_tokens=24, ignore_eos=True, logprobs=True, seed=5
    )
    groups = engine.generate(PROMPTS, params)
    assert {len(completion.logprobs) for group in groups for completion in group} == {24}
    assert largest_gap(models[0], groups, 0.7) < LOGPROB_TOLERANCE


def test_seeds_and_limits(engine):
    params = SamplingParams(n=3, max_tokens=16, seed=5, logprobs=True)
    groups = engine.generate(PROMPTS, params)
    alone = engine.generate(PROMPTS[1:2], params)[0]
    assert [c.token_ids for c in alone] == [c.token_ids for c in groups[1]]
    assert len({c.token_ids for c in alone}) == 3
    cut = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=5, ignore_eos=True))[0][0]
    assert (len(cut.token_ids), cut.finish_reason) == (5, FinishReason.LENGTH)
    ended = engine.generate(
        PROMPTS[:1], SamplingParams(max_tokens=400, stop_token_ids=tuple(range(3, 400)), seed=1)
    )[0][0]
    assert ended.finish_reason is FinishReason.STOP and len(ended.token_ids) < 400
    with pytest.raises(ConfigError, match="refused a prompt of 600 tokens"):
        engine.generate([(7,) * 600], SamplingParams())
    # a refused prompt leaves the engine as it was
    assert engine.generate(PROMPTS, params) == groups


def test_long_seeded_prompts_that_fill_a_batch(engine):
    """vLLM 0.32 on a CPU breaks on a seeded request whose prompt is prefilled in pieces; ours never
    are."""
    prompts = [tuple((7 * p + i) % 300 + 3 for i in range(400)) for p in range(24)]
    groups = engine.generate(prompts, SamplingParams(n=2, max_tokens=4, seed=9, ignore_eos=True))
    assert sum(len(group) for group in groups) == 48 and engine.restarts == 0


def test_new_weights_generate_at_once_and_versions_are_stamped(engine, models):
    params = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True, logprobs=True, seed=2)
    before = engine.generate(PROMPTS, params)
    sums = engine.weight_checksums()
    engine.update_weights(str(models[1]), 1)
    after = engine.generate(PROMPTS, params, expect_version=1)
    assert {group[0].policy_version for group in after} == {1}
    assert largest_gap(models[1], after, 1.0) < LOGPROB_TOLERANCE
    assert engine.weight_checksums() != sums
    engine.update_weights(str(models[0]), 2)
    again = engine.generate(PROMPTS, params)
    assert [group[0].token_ids for group in again] == [group[0].token_ids for group in before]
    assert engine.weight_checksums() == sums


def test_files_downstream_do_not_depend_on_who_generated(engine, tmp_path):
    """The same completions from vLLM and from the fake engine: the same journal, byte for byte once
    sorted, and the same samples rows."""
    problems = tuple(
        Problem(f"p{i}", (Message("user", "?"),), "7", source="toy", metadata={"question": "?"})
        for i in range(3)
    )
    task = Task("toy", problems, ("?",) * 3, PROMPTS, SamplingParams(n=4, max_tokens=12, seed=8))
    kept = {}

    class Recording:
        restarts = 0

        def stream(self, requests, expect_version=None):
            for index, completion in engine.stream(requests):
                kept[requests[index]] = completion
                yield index, completion

    files = {}
    with GradePool(num_workers=1) as pool:
        for name, generator in (
            ("vllm", Recording()),
            ("fake", FakeEngine(lambda request: kept[request])),
        ):
            with Journal(tmp_path / name, {"same": True}) as journal:
                run_task(task, generator, pool, journal)
                scores = report.score(problems, journal.records, 4, seed=0)
                rows = list(
                    lm_eval_format.sample_rows(task, journal.stored, scores, journal.fingerprint)
                )
            files[name] = (
                sorted((tmp_path / name / "journal.jsonl").read_bytes().splitlines()),
                rows,
            )
    assert len(kept) == 12 and files["vllm"] == files["fake"]


def test_an_engine_that_is_told_to_end_does(models, tmp_path, forked_engines, monkeypatch):
    """At once: vLLM's own clean-up, which takes seconds, is no part of it."""
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    options = VllmOptions(str(models[0]), cpu_kv_cache_gib=0.1, log_dir=str(tmp_path))
    with VllmEngine(options, Limits(start_s=200.0)) as one:
        one.forget_prompts()
    said = (tmp_path / "vllm_0.log").read_text()
    assert "DEBUG" in said and "[shutdown]" not in said


@pytest.mark.slow
def test_killed_engine_is_restarted_once_then_the_call_ends(engine, models):
    engine.update_weights(str(models[1]), 3)
    params = SamplingParams(n=24, ignore_eos=True, seed=4, logprobs=True)
    lengths = range(20, 500, 20)
    requests = [
        replace(request, params=replace(request.params, max_tokens=length))
        for request, length in zip(expand(PROMPTS[0], params), lengths, strict=True)
    ]
    seen = []
    with pytest.raises(EngineError, match="failed 2 times in one call") as error:
        for index, completion in engine.stream(requests):
            seen.append((index, completion))
            if len(seen) in (4, 12):  # the second kill hits the restarted engine
                os.kill(victim := engine.pids[0], signal.SIGKILL)
                wait_until(lambda pid=victim: not is_alive(pid), "end of the engine")
    assert error.value.exit_status == 3 and "killed by SIGKILL" in str(error.value)
    indices = [index for index, _ in seen]
    # none twice; the longest were lost with the second kill
    assert len(indices) == len(set(indices)) and 12 <= len(indices) < 24
    late = [completion for _, completion in seen][-1]
    gaps = zip(late.logprobs, reference_logprobs(models[1], PROMPTS[0], late, 1.0), strict=True)
    # the restarted engine has the updated weights, not those it was made with
    assert max(abs(a - b) for a, b in gaps) < LOGPROB_TOLERANCE
    assert late.policy_version == 3
