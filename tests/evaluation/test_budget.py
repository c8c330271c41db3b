"""s1's budget forcing against hand-worked token sequences, for both accountings, on a scripted
engine. A character is a token."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from megaladder.config.verbs.evaluation import BudgetSection
from megaladder.errors import ConfigError
from megaladder.evaluation.budget import BudgetSampler, instruction
from megaladder.rollout.engine import SampleRequest, SamplingParams
from megaladder.rollout.fake_engine import FakeEngine
from megaladder.types import Completion, FinishReason

SPECIAL = {"<think>": 2000, "</think>": 2001, "<|im_start|>": 2002}


class Chars:
    """Tokenizer: a character is a token, and so is each delimiter in SPECIAL."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        pieces = re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text)
        return [
            token
            for piece in pieces
            for token in ([SPECIAL[piece]] if piece in SPECIAL else map(ord, piece))
        ]

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        names = {token: name for name, token in SPECIAL.items()}
        return "".join(names.get(i) or chr(i) for i in ids)


CHARS = Chars()


class Script:
    """Answers calls in turn, token by token: ends at a stop string (cut off the text, kept in the
    ids) or at max_tokens. Keeps requests."""

    def __init__(self, *texts: str):
        self.texts, self.requests = list(texts), []

    def __call__(self, request: SampleRequest) -> Completion:
        self.requests.append(request)
        ids = CHARS.encode(self.texts[len(self.requests) - 1])
        for end in range(1, min(len(ids), request.params.max_tokens) + 1):
            text = CHARS.decode(ids[:end])
            for stop in request.params.stop:
                if stop in text:
                    return Completion(tuple(ids[:end]), text[: text.index(stop)], FinishReason.STOP)
        kept = ids[: request.params.max_tokens]
        return Completion(
            tuple(kept),
            CHARS.decode(kept),
            FinishReason.STOP if len(kept) == len(ids) else FinishReason.LENGTH,
        )

    def prompt(self, call: int) -> str:
        return CHARS.decode(self.requests[call].prompt_ids)


def run(section: BudgetSection, script: Script, max_tokens: int = 200, prompt: str = "Q"):
    request = SampleRequest(
        tuple(CHARS.encode(prompt)), SamplingParams(max_tokens=max_tokens, seed=3)
    )
    [(index, drawn)] = BudgetSampler(section, CHARS)(FakeEngine(script), [request])
    assert index == 0 and drawn.completion.token_ids == tuple(CHARS.encode(drawn.completion.text))
    return drawn


THINK = BudgetSection(start="<think>", end="</think>", max_thinking=10)


def test_thinking_that_ends_by_itself():
    script = Script("abc</think> junk", "42")
    drawn = run(THINK, script)
    assert script.prompt(0) == "Q<think>" and script.requests[0].params.max_tokens == 10
    assert script.prompt(1) == "Q<think>abc</think>"
    assert (
        drawn.completion.text == "abc</think>42"
        and drawn.num_thinking_tokens == 3
        and drawn.answer_text == "42"
    )
    assert script.requests[1].params.max_tokens == 200 - 3 and script.requests[1].params.stop == ()
    assert script.requests[0].params.seed != script.requests[1].params.seed


def test_thinking_that_is_cut_gets_the_forced_end():
    drawn = run(THINK, script := Script("abcdefghijklm</think>", " 42"))
    assert script.prompt(1) == "Q<think>abcdefghij\n</think>\nFinal Answer:"
    assert drawn.num_thinking_tokens == 10 and drawn.answer_text == "\nFinal Answer: 42"
    drawn = run(THINK, script := Script("abcdefghi\nklm", " 42"))
    assert script.prompt(1) == "Q<think>abcdefghi\n</think>\nFinal Answer:"  # no second line break


def test_template_that_opens_the_thinking_itself():
    run(THINK, script := Script("abc</think>", "42"), prompt="Q<think>")
    assert script.prompt(0) == "Q<think>"


def test_s1_delimiters():
    section = BudgetSection(
        start="<|im_start|>think", end="<|im_start|>answer", stop=("<|im_start|>",), max_thinking=50
    )
    drawn = run(section, script := Script("\nabc\n<|im_start|>answer\nx", "\nFinal Answer: 7"))
    assert script.prompt(1) == "Q<|im_start|>think\nabc\n<|im_start|>answer"
    assert drawn.num_thinking_tokens == 5 and drawn.answer_text == "\nFinal Answer: 7"
    assert script.requests[0].params.skip_special_tokens is False


def test_waits_published_accounting():
    """Each round gets the full 10: abc Wait d Wait e = 13 tokens, cut to 10 at the end, so the end
    is forced."""
    section = replace_section(THINK, num_waits=2, wait="Wait", accounting="published")
    drawn = run(section, script := Script("abc</think>", "d</think>", "e</think>", "42"))
    assert [request.params.max_tokens for request in script.requests[:3]] == [10, 10, 10]
    assert [script.prompt(1), script.prompt(2)] == [
        "Q<think>abcWait",
        "Q<think>abcWaitdWait",
    ] and script.requests[1].params.min_tokens == 1
    assert script.prompt(3) == "Q<think>abcWaitdWa\n</think>\nFinal Answer:"
    assert drawn.num_thinking_tokens == 10


def test_waits_remaining_accounting():
    """Rounds get 10, then 10 − 3, then 10 − 3 − 6 and are cut off there; waits cost nothing and
    nothing is cut afterwards."""
    section = replace_section(THINK, num_waits=2, wait="Wait", accounting="remaining")
    drawn = run(
        section,
        script := Script("abc</think>", "defghi</think>", "jkl</think>", "42"),
        max_tokens=100,
    )
    assert [request.params.max_tokens for request in script.requests[:3]] == [
        10,
        10 - 3,
        10 - 3 - 6,
    ]
    assert script.prompt(3) == "Q<think>abcWaitdefghiWaitj\n</think>\nFinal Answer:"
    assert drawn.num_thinking_tokens == 10 + 8


def test_waits_without_a_limit_and_without_a_string():
    section = BudgetSection(start="<think>", end="</think>", num_waits=1, wait="")
    drawn = run(section, script := Script("abc</think>", "de</think>", "42"), max_tokens=50)
    assert script.prompt(1) == "Q<think>abc" and drawn.completion.text == "abcde</think>42"
    assert script.requests[0].params.max_tokens == 49


def test_a_used_up_limit_is_not_waited_on():
    section = replace_section(THINK, num_waits=3)
    run(section, script := Script("abcdefghijkl", "42"))
    assert len(script.requests) == 2  # further rounds would be cut off again


def test_auto_limit():
    """s1: max_tokens − longest prompt − len(start) − len(forced end) − 100."""
    section = BudgetSection(start="<think>", end="</think>", max_thinking="auto")
    sampler = BudgetSampler(section, CHARS, longest_prompt=30)
    assert (
        sampler.limit(SamplingParams(max_tokens=1000))
        == 1000 - 30 - 1 - (1 + len("\nFinal Answer:")) - 100
    )
    with pytest.raises(ConfigError, match="max_tokens is 50"):
        sampler.limit(SamplingParams(max_tokens=50))
    with pytest.raises(ConfigError, match=r"budget\.max_thinking 10 is 10 thinking tokens"):
        BudgetSampler(THINK, CHARS).limit(SamplingParams(max_tokens=10))


def test_rejection_sampling_draws_until_it_is_short_enough():
    section = BudgetSection(start="<think>", end="</think>", reject_above=4)
    drawn = run(
        section, script := Script("abcdefgh</think>", "abcdefg</think>", "abc</think>", "42")
    )
    assert [request.params.max_tokens for request in script.requests[:3]] == [5, 5, 5]
    assert len({request.params.seed for request in script.requests}) == 4
    assert (drawn.tries, drawn.num_thinking_tokens, drawn.completion.text) == (
        3,
        3,
        "abc</think>42",
    )
    hopeless = run(replace_section(section, max_tries=2), Script("abcdefgh", "abcdefgh"))
    assert hopeless.completion.finish_reason is FinishReason.ABORT and hopeless.tries == 2


def test_delimiter_inside_a_token():
    """Token 1000 is 'c</th': the kept text ends within it, so only that token is encoded anew."""

    class Merged(Chars):
        def decode(self, ids, skip_special_tokens: bool = False) -> str:
            return "".join("c</th" if i == 1000 else super(Merged, self).decode([i]) for i in ids)

    completions = iter(
        [
            Completion((97, 98, 1000, *map(ord, "ink>")), "abc", FinishReason.STOP),
            Completion((52,), "4", FinishReason.STOP),
        ]
    )
    request = SampleRequest((81,), SamplingParams(max_tokens=50))
    [(_, drawn)] = BudgetSampler(THINK, Merged())(
        FakeEngine(lambda _: next(completions)), [request]
    )
    assert drawn.completion.token_ids == (97, 98, 99, *CHARS.encode("</think>"), 52)


def test_many_samples_keep_their_order_and_waves(monkeypatch):
    monkeypatch.setattr("megaladder.evaluation.budget.WAVE", 3)

    def responder(request: SampleRequest) -> Completion:
        text = CHARS.decode(request.prompt_ids)
        said = "a" if text.endswith("<think>") else text[0]
        return Completion((ord(said),), said, FinishReason.STOP)

    requests = [SampleRequest((65 + i,), SamplingParams(max_tokens=20)) for i in range(8)]
    found = dict(BudgetSampler(THINK, CHARS)(FakeEngine(responder), requests))
    assert [found[i].completion.text for i in range(8)] == [
        f"a</think>{chr(65 + i)}" for i in range(8)
    ]


def test_instructions_are_s1s():
    assert instruction(BudgetSection(tokens=1024)) == "\n\nThink for up to 1024 tokens."
    assert instruction(BudgetSection(steps=16)) == "\n\nThink for up to 16 steps."
    assert instruction(BudgetSection(effort="short")).startswith(
        "\n\nAnswer after a short amount of thinking. Do not spend"
    )
    assert instruction(BudgetSection()) == ""


def replace_section(section: BudgetSection, **values) -> BudgetSection:
    return BudgetSection(**{**section.model_dump(), **values})


def test_requests_are_left_as_they_were():
    request = SampleRequest((81,), SamplingParams(max_tokens=20, stop=("x",)))
    before = replace(request)
    list(BudgetSampler(THINK, CHARS)(FakeEngine(Script("a</think>", "4")), [request]))
    assert request == before
