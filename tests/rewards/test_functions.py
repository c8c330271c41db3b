"""Users' reward functions: ours, TRL's and verl's contracts, and what their bugs do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from rewards.grader_corpus import children_of
from waiting import is_alive, wait_until

from megaladder.config.sections.reward import RewardSection
from megaladder.errors import ConfigError, RewardError
from megaladder.rewards.terms.builtin import Sample
from megaladder.rewards.terms.total import RewardTerms
from megaladder.types import Completion, FinishReason, Graded, GradeReason, Message, Problem

FILE = """
from __future__ import annotations

import asyncio, os, re, sys, threading, time
from dataclasses import dataclass

@dataclass
class Weights:
    bonus: float = 0.5

W = Weights()

def ours(prompt, completion, gold, correct, level):
    print("noise " * 100_000)
    return W.bonus * (completion == gold) + level + 10 * prompt.startswith("What") + 100 * correct

def everything(**given):
    assert given["ground_truth"] == given["gold"] == given["answer"], given
    return float(len(given["completion_ids"]))

async def waits(completion):
    await asyncio.sleep(0.05)
    return float(completion)

# the contracts of TRL's documentation: strings, or lists of messages for conversational prompts
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]

def accuracy_reward(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if content == right else 0.0 for content, right in zip(contents, solution)]

def format_reward_func(prompts, completions, **kwargs):
    assert prompts[0][-1]["role"] == "user"
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    return [bool(re.match(pattern, completion[0]["content"])) for completion in completions]

def math_task_only(prompts, completions, task, **kwargs):
    return [1.0 if each == "math" else None for each in task]

async def async_reward(prompts, completions, **kwargs):
    async def one(completion):
        await asyncio.sleep(0.01)
        return float(len(completion))
    return await asyncio.gather(*(one(completion) for completion in completions))

# verl's: one sample, or a batch
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "openai/gsm8k"
    return {"score": float(solution_str == ground_truth), "acc": True, "index": extra_info["index"]}

def plain_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return solution_str == ground_truth

def batch_score(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(s == g) for s, g in zip(solution_strs, ground_truths)]

def misbehave(completion):
    if completion == "loop":
        while True: pass
    if completion == "c loop":
        9 ** 9 ** 9
    if completion == "sleep":
        time.sleep(1000)
    if completion == "exit":
        os._exit(3)
    return 1.0

def hang(completions, **columns):
    time.sleep(1000)

def bug(completion):
    return {"raise": lambda: 1 / 0, "nan": lambda: float("nan"), "none": lambda: None,
            "complex": lambda: 1j, "text": lambda: "1.0", "inf": lambda: float("inf"),
            "list": lambda: [1.0], "exit": lambda: sys.exit(0), "huge": lambda: 10 ** 10_000,
            "score": lambda: {"points": 1}}[completion]()

def short(completions, **columns):
    return [1.0]

def wants_more(completion, weather):
    return 0.0
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("user") / "my_rewards.py"
    file.write_text(FILE)
    return str(file)


def sample(
    text: str, gold: str = "5", *, chat: bool = False, source: str = "", **columns
) -> Sample:
    problem = Problem(
        f"sample {text}",
        (Message("user", "What is 2 + 3?"),),
        gold,
        source=source,
        metadata=columns,
        conversational=chat,
    )
    completion = Completion((1, 2, 3), text, FinishReason.STOP)
    return Sample(problem.id, problem, completion, Graded(True, text, GradeReason.EXACT), 100)


def values(spec: str, *samples: Sample, **term) -> list[float | None]:
    terms = RewardTerms(RewardSection(terms=[{"function": spec, **term}]))
    try:
        return [one.reward for one in terms.score(samples)]
    finally:
        terms.close()


def test_our_own_signature_gets_what_it_names(path):
    assert values(f"{path}:ours", sample("5", level=1), sample("6", level=2)) == [111.5, 112.0]
    assert values(f"{path}:everything", sample("5", anything=[1])) == [3.0]
    assert values(f"{path}:waits", *(sample(str(i)) for i in range(20))) == [*range(20)]


def test_trls_functions_run_unchanged(path):
    assert values(f"{path}:reward_len", sample("x" * 18), sample("")) == [-2.0, -20.0]
    talks = [sample("5", chat=True), sample("<think>a</think><answer>b</answer>", chat=True)]
    assert values(f"{path}:accuracy_reward", *talks) == [1.0, 0.0]
    assert values(f"{path}:format_reward_func", *talks) == [0.0, 1.0]
    assert values(f"{path}:async_reward", sample("abc"), sample("")) == [3.0, 0.0]
    # None: this function does not apply, so it adds nothing
    tasks = [sample("a", task="math"), sample("b", task="code")]
    assert values(f"{path}:math_task_only", *tasks) == [1.0, 0.0]


def test_verls_functions_run_unchanged(path):
    rows = [sample(text, source="openai/gsm8k", index=3) for text in ("5", "6")]
    for name in ("compute_score", "plain_score", "batch_score"):
        assert values(f"{path}:{name}", *rows) == [1.0, 0.0], name


def test_terms_add_up_beside_each_other(path):
    terms = RewardTerms(
        RewardSection(terms=["correctness", {"function": f"{path}:reward_len", "weight": 0.1}])
    )
    [found] = terms.score([sample("x" * 10)])
    terms.close()
    assert found.terms == {"correctness": 1.0, "reward_len": pytest.approx(-1.0)}


def test_hangs_and_crashes_are_undecided_and_leave_no_process(path):
    before = children_of(os.getpid())
    texts = ["fine", "loop", "fine", "sleep", "c loop", "exit", "fine"]
    found = values(f"{path}:misbehave", *map(sample, texts), timeout_s=0.5)
    assert found == [1.0 if text == "fine" else None for text in texts]
    assert values(f"{path}:hang", sample("a"), sample("b"), timeout_s=0.5) == [None, None]
    assert children_of(os.getpid()) == before


def test_a_bug_stops_with_the_sample(path):
    said_by_kind = {
        "raise": "ZeroDivisionError",
        "nan": "float nan",
        "none": "NoneType None",
        "complex": "complex 1j",
        "text": "str '1.0'",
        "inf": "float inf",
        "list": r"list \[1.0\]",
        "exit": "SystemExit",
        "huge": "int",
        "score": "dict {'points': 1}",
    }
    terms = RewardTerms(RewardSection(terms=[f"{path}:bug"]))
    for kind, said in said_by_kind.items():
        with pytest.raises(RewardError, match=f"sample {kind}: .*my_rewards.py:bug.*{said}"):
            terms.score([sample(kind)])
    terms.close()
    with pytest.raises(RewardError, match="returned 1 values for 2 completions"):
        values(f"{path}:short", sample("a"), sample("b"))
    with pytest.raises(RewardError, match="wants weather"):
        values(f"{path}:wants_more", sample("a"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{0}:no_such", "has no function 'no_such'"),
        ("nowhere.py:f", "no file"),
        ("{0}:", "path.py:function"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_a_config_error(path, spec, said):
    with pytest.raises(ConfigError, match=said):
        values(spec.format(path), sample("x"))


def test_a_stopped_function_ends_with_a_killed_parent(tmp_path):
    script = (
        "import signal, sys; from megaladder.rewards.terms.function_pool import _Process;"
        "print(_Process(sys.argv[1]).pid, flush=True); signal.pause()"
    )
    (tmp_path / "reward.py").write_text("def one(completion): return 1.0\n")
    command = [sys.executable, "-c", script, f"{tmp_path / 'reward.py'}:one"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(pid), "the end of the function")
