"""Rows that other trainers were reported to train wrongly, each through the command that a user
types: what has no loss, what is in the prompt, what is refused and by which name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import pytest
from data.chat_templates import CHATML, DEEPSEEK_R1, QWEN_2_5, QWEN_3, SPECIAL
from data.conftest import build_tokenizer

from megaladder import cli
from megaladder.config.sections.evaluate import PromptSection
from megaladder.data.chat.prompts import render_prompts
from megaladder.data.chat.tokenizer import load_tokenizer
from megaladder.data.read import BadRow
from megaladder.data.read_problems import read_problems
from megaladder.errors import DataError
from megaladder.evaluation.benchmarks.prompting import make_prompter

USER = {"role": "user", "content": "2+3?"}
ADDER = {
    "type": "function",
    "function": {
        "name": "adder_tool",
        "description": "adds two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
ALWAYS_PROMPTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"
)
PRINTS_THE_DAY = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + CHATML


def answer(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    special = [*SPECIAL[1:3], SPECIAL[0]]
    return build_tokenizer(tmp_path_factory.mktemp("chatml"), special, None, None)


@pytest.fixture
def stats(tokenizer, tmp_path, capsys):
    """(row, template, flags) → status and output of `data stats`."""

    def run(row: dict, template: str, *flags: str) -> tuple[int, str]:
        (tmp_path / "t.jinja").write_text(template, newline="")
        (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
        given = ("--tokenizer", str(tokenizer), "--chat-template", str(tmp_path / "t.jinja"))
        status = cli.main(["data", "stats", str(tmp_path / "d.jsonl"), *given, *flags])
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).splitlines()
        return status, "\n".join(line for line in lines if not line.startswith("one sample"))

    return run


@pytest.mark.parametrize("template", [CHATML, QWEN_2_5, QWEN_3], ids=["chatml", "2.5", "3"])
def test_loss_false_of_a_turn_is_obeyed(stats, template):
    turns = [USER, answer("DONTLEARN 6", loss=False), {"role": "user", "content": "again"}]
    _, out = stats({"messages": [*turns, answer("5", loss=True)]}, template)
    assert "5<|im_end|>⟧" in out and "DONTLEARN 6<|im_end|>" in out
    assert "DONTLEARN" not in "".join(part.partition("⟧")[0] for part in out.split("⟦")[1:])


@pytest.mark.parametrize(
    "flags",
    [{"weight": 0}, {"loss_mask": 0}, {"train": False}, {"trainable": False}, {"loss": 0.0}],
    ids=str,
)
def test_every_spelling_of_no_loss_is_obeyed(stats, flags):
    turns = [USER, answer("DONTLEARN 6", **flags), {"role": "user", "content": "again"}]
    _, out = stats({"messages": [*turns, answer("5")]}, CHATML)
    assert out.count("⟦") == 1 and "⟦5<|im_end|>⟧" in out


def test_fields_that_change_nothing_are_accepted(stats):
    status, out = stats({"messages": [USER, answer("5", weight=1, tool_calls=[])]}, CHATML)
    assert status == 0 and "⟦5<|im_end|>⟧" in out


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"weight": 0.5}, "bad weight"),
        ({"loss": True, "weight": 0}, "flags that disagree"),
        ({"reasoning": "a", "thinking": "b"}, "several reasonings"),
        ({"function_call": {"name": "f"}}, "unknown field function_call of a turn"),
        ({"loss_scale": 0.3}, "unknown field loss_scale of a turn"),
        ({"loss": False}, "no trained turn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_obeyed_is_refused_by_name(stats, fields, name):
    _, out = stats({"messages": [USER, answer("5", **fields)]}, CHATML)
    assert f"1 × {name}" in out and "⟦" not in out


def test_tools_stand_in_the_prompt_or_are_refused(stats):
    row = {"messages": [USER, answer("5")], "tools": [ADDER]}
    _, out = stats(row, QWEN_2_5)
    assert "adder_tool" in out.partition("⟦")[0] and "⟦5<|im_end|>⟧" in out
    # parquet files hold them as text
    _, out = stats({**row, "tools": json.dumps([ADDER])}, QWEN_2_5)
    assert "adder_tool" in out.partition("⟦")[0] and "⟦5<|im_end|>⟧" in out
    _, out = stats(row, CHATML)
    assert "1 × template leaves something out" in out and "⟦" not in out


@pytest.mark.parametrize("column", ["images", "videos", "audio"])
def test_images_are_refused_by_the_columns_name(stats, column):
    row = {"messages": [{**USER, "content": "<image>What is it?"}, answer("a circle")]}
    _, out = stats({**row, column: ["circle.png"]}, CHATML)
    assert f"1 × column {column}" in out and "⟦" not in out
    status, out = stats({**row, column: []}, CHATML)
    assert status == 0 and "⟦a circle<|im_end|>⟧" in out


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_learned_or_refused(stats, key):
    row = {"messages": [USER, answer("5", **{key: "KEEPTHIS two and three"})]}
    _, out = stats(row, QWEN_3)
    assert "⟦<think>\nKEEPTHIS two and three\n</think>\n\n5<|im_end|>⟧" in out
    _, out = stats(row, CHATML)
    assert "1 × template drops reasoning" in out and "⟦" not in out


def test_an_answer_that_starts_with_line_breaks(stats):
    row = {"messages": [USER, answer("\n\nThe answer is 5.")]}
    _, out = stats(row, QWEN_2_5)
    assert "<|im_start|>assistant\n⟦\n\nThe answer is 5.<|im_end|>⟧" in out
    _, out = stats(row, QWEN_3)
    assert "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nThe answer is 5.<|im_end|>⟧" in out


def test_a_template_that_always_opens_an_answer(stats):
    _, out = stats({"messages": [USER, answer("5")]}, ALWAYS_PROMPTS)
    assert "⟦5<|im_end|>⟧" in out and out.count("assistant\n") == 1


def test_a_template_that_prints_the_day_gives_the_same_tokens_on_another(stats, monkeypatch):
    import transformers.utils.chat_template_utils as rendering

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    row = {"messages": [USER, answer("5")]}
    _, today = stats(row, PRINTS_THE_DAY)
    monkeypatch.setattr(rendering, "datetime", Clock)
    _, later = stats(row, PRINTS_THE_DAY)
    assert later == today and "Today is 26 Jul 2024." in today


def test_thinking_without_its_opening_tag_is_one_block(stats):
    row = {"messages": [USER, answer("two, three\n</think>\n\n5")]}
    _, out = stats(row, QWEN_3)
    assert "⟦<think>\ntwo, three\n</think>\n\n5<|im_end|>⟧" in out and out.count("<think>") == 1


def test_a_template_that_opens_the_thinking_and_drops_it(stats):
    """The answer goes on after the prompt that generation uses, with its thinking."""
    row = {"messages": [USER, answer("<think>\ntwo, three\n</think>\n\n5")]}
    template = DEEPSEEK_R1.replace("<｜end▁of▁sentence｜>", "<|im_end|>").replace("bos_token", "''")
    _, out = stats(row, template)
    assert "<think>\n⟦two, three\n</think>\n\n5<|im_end|>⟧" in out


def problem_of(tmp_path, **columns):
    row = {"question": "2+3?", "answer": "5", **columns}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    return read_problems(tmp_path / "d.jsonl")[0]


def test_problems_with_images_are_refused(tmp_path):
    with pytest.raises(BadRow, match="expected rows of text, found the column 'images'"):
        problem_of(tmp_path, images=[{"path": "x.png"}])
    assert problem_of(tmp_path, images=None, tools=None).gold == "5"


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_arguments_of_a_problem_stand_in_its_prompt(tmp_path, tokenizer, as_text):
    """Whoever asks an engine renders a problem as SFT renders such a row."""
    columns = {"tools": [ADDER], "chat_template_kwargs": {"enable_thinking": False}}
    given = {name: json.dumps(value) if as_text else value for name, value in columns.items()}
    problem = problem_of(tmp_path, **given)
    assert not columns.keys() & problem.metadata.keys()
    base = load_tokenizer(tokenizer)
    closed = "<think>\n\n</think>\n\n"
    base.chat_template = QWEN_2_5 + f"{{% if enable_thinking is false %}}{closed}{{% endif %}}"
    turns = [{"role": "user", "content": "2+3?"}]
    text = base.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, tools=[ADDER], enable_thinking=False
    )
    assert "adder_tool" in text and text.endswith(closed)
    (ids,) = render_prompts([problem], base)
    prompter = make_prompter(base, PromptSection(), None)
    assert base.decode(ids) == prompter.text(problem) == text

    base.chat_template = CHATML
    for render in (lambda: render_prompts([problem], base), lambda: prompter.text(problem)):
        with pytest.raises(BadRow, match="that prints or reads the argument 'enable_thinking'"):
            render()
    with_tools = replace(problem, template_kwargs={})
    with pytest.raises(BadRow, match="expected a chat template that prints or reads the tools"):
        render_prompts([with_tools], base)
    base.chat_template = None
    with pytest.raises(DataError, match="that prints its tools, found a prompt without a template"):
        render_prompts([with_tools], base)


def test_calls_and_results_of_sharegpt_are_turns_of_a_tool(stats):
    """`function_call` is an answer that calls, its text the call; `observation` the tool's turn."""
    call = {"name": "adder_tool", "arguments": {"a": 2, "b": 3}}
    turns = [
        {"from": "human", "value": "2+3?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "5"},
        {"from": "gpt", "value": "It is 5."},
    ]
    _, out = stats({"conversations": turns, "tools": json.dumps([ADDER])}, QWEN_2_5)
    assert "⟦<tool_call>" in out and '"adder_tool"' in out.partition("⟦<tool_call>")[2]
    assert "<|im_start|>tool\n5<|im_end|>" in out and "⟦It is 5.<|im_end|>⟧" in out


def test_arguments_of_a_row_and_of_the_command(stats):
    row = {"messages": [USER, answer("5")]}
    _, out = stats({**row, "chat_template_kwargs": {"enable_thinking": False}}, QWEN_3)
    assert "<think>\n\n</think>\n\n⟦5<|im_end|>⟧" in out
    _, out = stats({**row, "chat_template_kwargs": {"enable_thinkin": False}}, QWEN_3)
    assert "1 × template leaves something out" in out
    _, out = stats(row, QWEN_3, "--chat-template-kwargs", "{enable_thinking: false}")
    assert "<think>\n\n</think>\n\n⟦5<|im_end|>⟧" in out
    status, out = stats(row, QWEN_3, "--chat-template-kwargs", "{enable_thinkin: false}")
    assert status == 2 and "'enable_thinkin'" in out
