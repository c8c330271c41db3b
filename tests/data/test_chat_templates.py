"""Published families of chat templates: the prompt of a sample is the prompt of generation, token
by token, and loss is on the answer and the token that ends it, and nowhere else."""

from __future__ import annotations

from datetime import datetime

import pytest
from data.chat_templates import FAMILIES, GLM_4_5, LLAMA_3_DATE, QWEN_2_5, QWEN_3, SPECIAL, Family
from data.conftest import build_tokenizer

from megaladder.data.chat.prompts import render_prompts
from megaladder.data.chat.samples import split_turns, tokenize_example
from megaladder.data.chat.stops import stop_token_ids, turn_end
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.chat.tokenizer import load_tokenizer
from megaladder.data.read import BadRow
from megaladder.errors import ConfigError
from megaladder.types import Example, Message, Problem, Tokenizer, TokenSample

THINK = "<think>\n3*4=12\n</think>\n\n12"
USER, MORE = Message("user", "3*4?"), Message("user", "and 2*2?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One tokenizer with the control tokens of all families."""
    return build_tokenizer(tmp_path_factory.mktemp("all"), list(SPECIAL), None, None)


@pytest.fixture
def load(folder, tmp_path):
    """(template or family, arguments) → tokenizer."""

    def make(family: Family | str, **arguments) -> Tokenizer:
        text = family.template if isinstance(family, Family) else family
        file = tmp_path / "t.jinja"
        file.write_text(text, newline="")
        tokenizer = load_tokenizer(folder, None, file, False, arguments)
        if isinstance(family, Family):
            tokenizer.eos_token, tokenizer.bos_token = family.eos, family.bos
        return tokenizer

    return make


def row(*messages: Message | str, **fields) -> Example:
    turns = tuple(Message("assistant", one) if isinstance(one, str) else one for one in messages)
    return Example("x", "d.jsonl:1", turns, **fields)


def generation_prompt(tokenizer: Tokenizer, *messages: Message) -> list[int]:
    """As GRPO asks the engine."""
    return list(render_prompts([Problem("p", messages, "12")], tokenizer)[0])


def learned(sample: TokenSample, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(sample.input_ids[sample.loss_mask].tolist())


def check_single(sample: TokenSample, tokenizer: Tokenizer, answer: str, closing: str) -> None:
    prompt = generation_prompt(tokenizer, USER)
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert not sample.loss_mask[: len(prompt)].any()
    assert learned(sample, tokenizer) == answer + closing
    # in one piece, from the prompt's end on
    assert sample.loss_mask[len(prompt) : len(prompt) + sample.num_loss_tokens].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_turn(load, name):
    family = FAMILIES[name]
    tokenizer = load(family)
    plain = tokenize_example(row(USER, "12"), tokenizer)
    check_single(plain, tokenizer, family.plain, family.closing)
    thinking = tokenize_example(row(USER, THINK), tokenizer)
    check_single(thinking, tokenizer, family.thinking, family.closing)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_taught_end_stops_the_engine(load, name):
    family = FAMILIES[name]
    tokenizer = load(family)
    closing, eos = (tokenizer.get_vocab()[token] for token in (family.closing, family.eos))
    assert stop_token_ids(tokenizer) == tuple(dict.fromkeys((closing, eos)))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_begins_with_line_breaks(load, name):
    """They merge with those of the prompt in one piece; the engine samples them apart. Templates
    that strip them do so."""
    family = FAMILIES[name]
    tokenizer = load(family)
    sample = tokenize_example(row(USER, "\n\nThe answer is 12."), tokenizer)
    prompt = generation_prompt(tokenizer, USER)
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    text = learned(sample, tokenizer)
    assert text.endswith(f"The answer is 12.{family.closing}")
    keeps = not any(word in family.template for word in ("trim", "lstrip"))
    assert text.count("\n\nThe") == int(keeps or "<think>" in text or "</think>" in text)


@pytest.mark.parametrize("name", FAMILIES)
def test_several_turns(load, name):
    """Every turn is trained where the template prints it alike whatever follows; where it rewrites
    earlier turns the row is refused with ways out, each of which works."""
    family = FAMILIES[name]
    tokenizer = load(family)
    example = row(USER, "12", MORE, "4")
    if family.multi_turn:
        sample = tokenize_example(example, tokenizer)
        two = family.plain + family.closing + family.plain.replace("12", "4") + family.closing
        assert learned(sample, tokenizer) == two
        first = generation_prompt(tokenizer, USER)
        assert sample.input_ids[: len(first)].tolist() == first
    else:
        with pytest.raises(BadRow, match=r"data.reasoning: split.*data.reasoning: last-turn"):
            tokenize_example(example, tokenizer)
    prompt = generation_prompt(tokenizer, *example.messages[:3])
    last = tokenize_example(example, tokenizer, TemplateOptions(reasoning="last-turn"))
    parts = [
        tokenize_example(part, tokenizer, TemplateOptions(reasoning="split"))
        for part in split_turns(example)
    ]
    for sample in (last, parts[1]):
        assert sample.input_ids[: len(prompt)].tolist() == prompt
        assert learned(sample, tokenizer) == family.plain.replace("12", "4") + family.closing
    check_single(parts[0], tokenizer, family.plain, family.closing)


def test_a_turn_without_loss_is_context(load):
    tokenizer = load(FAMILIES["qwen-2.5"])
    example = row(USER, Message("assistant", "DONTLEARN", trained=False), MORE, "4")
    assert learned(tokenize_example(example, tokenizer), tokenizer) == "4<|im_end|>"
    last = row(USER, "12", MORE, Message("assistant", "DONTLEARN", trained=False))
    assert learned(tokenize_example(last, tokenizer), tokenizer) == "12<|im_end|>"
    assert [part.id for part in split_turns(example)] == ["x"]


def test_the_day_is_frozen(load, monkeypatch):
    """A template that prints today's date gives the same tokens on another day."""
    import transformers.utils.chat_template_utils as rendering

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    tokenizer = load(LLAMA_3_DATE)
    today = tokenize_example(row(USER, "12"), tokenizer).input_ids.tolist()
    monkeypatch.setattr(rendering, "datetime", Clock)
    assert tokenize_example(row(USER, "12"), tokenizer).input_ids.tolist() == today
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(today)
    assert (
        "Today Date: 06 May 2031"
        in rendering.render_jinja_template(
            [[{"role": "user", "content": "a"}]], chat_template=LLAMA_3_DATE, bos_token=""
        )[0][0]
    )


def test_arguments_of_the_template(load):
    """From the configuration they are the template's defaults, from a row its own; both must be
    read by the template, and the prompt that they give is that of generation."""
    off = load(QWEN_3, enable_thinking=False)
    prompt = generation_prompt(off, USER)
    assert off.decode(prompt).endswith("<think>\n\n</think>\n\n")
    sample = tokenize_example(row(USER, "12"), off)
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert learned(sample, off) == "12<|im_end|>"
    with pytest.raises(BadRow, match=r"expected a chat template whose finished answer goes on"):
        tokenize_example(row(USER, THINK), off)
    asked = row(USER, THINK, template_kwargs={"enable_thinking": True})
    assert learned(tokenize_example(asked, off), off) == THINK + "<|im_end|>"
    glm = load(GLM_4_5, enable_thinking=False)
    assert learned(tokenize_example(row(USER, "12"), glm), glm) == "\n12<|user|>"
    with pytest.raises(BadRow, match=r"reads the argument 'think' of chat_template_kwargs"):
        tokenize_example(row(USER, "12", template_kwargs={"think": True}), load(QWEN_3))
    with pytest.raises(ConfigError, match=r"arguments that the chat template reads, found 'think'"):
        load(QWEN_3, think=True)


def test_reasoning_of_a_field_of_its_own(load):
    told = row(USER, Message("assistant", "12", "KEEPTHIS"))
    glm, qwen = load(GLM_4_5), load(QWEN_3)
    text = learned(tokenize_example(told, glm), glm)
    assert text == "\n<think>KEEPTHIS</think>\n12<|user|>"
    text = learned(tokenize_example(told, qwen), qwen)
    assert text == "<think>\nKEEPTHIS\n</think>\n\n12<|im_end|>"
    opened = load(FAMILIES["deepseek-r1-distill"])
    text = learned(tokenize_example(told, opened), opened)
    assert text == "KEEPTHIS\n</think>\n\n12<｜end▁of▁sentence｜>"


def test_thinking_inside_the_answer_is_one_block(load):
    """A template that reads thinking from a field only would write an empty block before it."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    tokenizer = load(template)
    for answer in (THINK, THINK.removeprefix("<think>\n")):
        sample = tokenize_example(row(USER, answer), tokenizer)
        check_single(sample, tokenizer, "3*4=12\n</think>\n\n12", "<|im_end|>")


TOOL = {"type": "function", "function": {"name": "adder_tool", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "adder_tool", "arguments": {"a": 1}}}


def test_tools_and_their_calls(load):
    tokenizer = load(QWEN_2_5)
    turns = (
        USER,
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "12", tool_call_id="1"),
        Message("assistant", "12"),
    )
    sample = tokenize_example(row(*turns, tools=(TOOL,)), tokenizer)
    call = '<tool_call>\n{"name": "adder_tool", "arguments": {"a": 1}}\n</tool_call>'
    assert learned(sample, tokenizer) == f"{call}<|im_end|>12<|im_end|>"
    prompt = tokenizer.decode(sample.input_ids[: int(sample.loss_mask.argmax())].tolist())
    assert '"name": "adder_tool"' in prompt
    plain = load(FAMILIES["qwen-3-2507"])
    with pytest.raises(BadRow, match=r"prints or reads the tools, found that it does not"):
        tokenize_example(row(USER, "12", tools=(TOOL,)), plain)
    with pytest.raises(BadRow, match=r"prints or reads tool calls \(turn 2\)"):
        tokenize_example(row(*turns), plain)


def test_a_template_that_leaves_the_answer_out_is_refused(load):
    template = "{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"
    with pytest.raises(BadRow, match=r"prints or reads the text '12' \(turn 2\)"):
        tokenize_example(row(USER, "12"), load(template))


def test_turn_ends(load):
    first, phi, glm = (load(FAMILIES[name]) for name in ("llama-3-first", "phi-3", "glm-4"))
    assert turn_end(first).appendix == "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert turn_end(phi).appendix == "<|endoftext|>"
    assert (turn_end(glm).closing, turn_end(glm).printed) == ("<|user|>", False)


TRL = ("gemma", "llama3", "phi3", "qwen2_5", "qwen3", "qwen3_instruct_2507", "deepseek_r1_distill")


@pytest.mark.parametrize("name", TRL)
def test_published_templates(load, name):
    """The originals that TRL ships, where it is installed."""
    files = pytest.importorskip("importlib.resources").files(pytest.importorskip("trl"))
    file = files / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL ships no {name}")
    tokenizer = load(file.read_text(encoding="utf-8"))
    tokenizer.bos_token = "<s>"
    closing = turn_end(tokenizer).closing
    for answer in ("12", THINK):
        sample = tokenize_example(row(USER, answer), tokenizer)
        prompt = generation_prompt(tokenizer, USER)
        assert sample.input_ids[: len(prompt)].tolist() == prompt
        whole = tokenizer.decode(prompt) + learned(sample, tokenizer)
        assert whole.count("3*4=12") == answer.count("3*4=12")
        assert whole.endswith(f"12{closing}")
        assert not sample.loss_mask[: len(prompt)].any()


REFUSE = "{{ raise_exception('SAID') }}"


@pytest.mark.parametrize(
    ("template", "fix"),
    [
        (
            REFUSE.replace("SAID", "After the system turn roles must alternate"),
            "reorder the turns, or",
        ),
        (REFUSE.replace("SAID", "one text is embedded at a time"), "model.chat_template: one that"),
        ("{{ messages[0].number + 'x' }}", "give the turns or their tool calls the field 'number'"),
    ],
)
def test_a_refusal_leads_on_by_what_the_template_says(load, template, fix) -> None:
    with pytest.raises(BadRow) as refused:
        tokenize_example(row(USER, "12"), load(template))
    assert f"fix: {fix}" in str(refused.value), refused.value
