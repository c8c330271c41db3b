"""Chat templates and loss masks on real tokenizers, token by token; templates that rewrite history
are noticed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaladder.data.chat.samples import render_sample, split_turns, tokenize_example
from megaladder.data.chat.templates import TemplateOptions
from megaladder.data.chat.tokenizer import load_tokenizer, tokenizer_fingerprint
from megaladder.data.layouts.learn import ReadOptions, from_scored
from megaladder.data.read import BadRow, RawRow
from megaladder.errors import DataError, ModelError
from megaladder.types import Example, Message

THINK = "<think>\n3*4=12\n</think>\n\n12"


def chat(*contents: str, where: str = "d.jsonl:1", **extra) -> Example:
    return Example(
        "x",
        where,
        tuple(
            Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)
        ),
        **extra,
    )


def loss_text(sample, tokenizer) -> str:
    return tokenizer.decode(sample.input_ids[sample.loss_mask].tolist())


def whole_text(sample, tokenizer) -> str:
    return tokenizer.decode(sample.input_ids.tolist())


def test_single_turn_qwen3_style(qwen3):
    sample = tokenize_example(chat("3*4?", THINK), qwen3)
    assert (
        whole_text(sample, qwen3)
        == f"<|im_start|>user\n3*4?<|im_end|>\n<|im_start|>assistant\n{THINK}<|im_end|>\n"
    )
    assert loss_text(sample, qwen3) == THINK + "<|im_end|>", (
        "the end-of-turn token is learnt, the line feed after it is not"
    )
    assert sample.input_ids.dtype == np.int32 and sample.loss_mask.dtype == bool


def test_every_turn_is_trained_llama3_style(llama3):
    sample = tokenize_example(chat("1+1?", "2", "2+2?", "4"), llama3)
    assert loss_text(sample, llama3) == "2<|eot_id|>4<|eot_id|>"
    assert whole_text(sample, llama3).count("<|begin_of_text|>") == 1


def test_default_template_for_base_models_keeps_reasoning_in_every_turn(base):
    messages = (
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b", "r1"),
        Message("user", "c"),
        Message("assistant", "d", "r2"),
    )
    sample = tokenize_example(Example("x", "f:1", messages), base)
    assert (
        loss_text(sample, base)
        == "<think>\nr1\n</think>\n\nb<|im_end|><think>\nr2\n</think>\n\nd<|im_end|>"
    )
    assert whole_text(sample, base).startswith(
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>"
    )


@pytest.mark.parametrize("answer", [THINK, "12"])
def test_templates_that_rewrite_earlier_turns_are_noticed(qwen3, answer):
    """Qwen3's template drops a <think> block once another user turn follows, and prints an empty
    one only in the last turn."""
    with pytest.raises(
        BadRow,
        match=(
            r"d.jsonl:7: expected a chat template that renders each turn the same whatever follows"
        ),
    ) as caught:
        tokenize_example(chat("3*4?", answer, "and 2*2?", "4", where="d.jsonl:7"), qwen3)
    message = str(caught.value)
    assert (
        "the <think> block of an earlier turn is dropped once others follow (Qwen3-style template)"
        in message
        and "(turn 2)" in message
    )
    assert message.endswith(
        "fix: train one sample per assistant turn (data.reasoning: split), only the last turn"
        " (data.reasoning: last-turn), or set model.chat_template to one that keeps every turn"
    )


def test_ways_out_of_a_rewriting_template(qwen3, base):
    example = chat("3*4?", THINK, "2*2?", "<think>\ne\n</think>\n\n4")
    last = tokenize_example(example, qwen3, TemplateOptions(reasoning="last-turn"))
    assert loss_text(last, qwen3) == "<think>\ne\n</think>\n\n4<|im_end|>"
    assert "assistant\n12<|im_end|>" in whole_text(last, qwen3), (
        "the earlier turn as the model will see it"
    )
    parts = [
        tokenize_example(part, qwen3, TemplateOptions(reasoning="split"))
        for part in split_turns(example)
    ]
    assert [part.id for part in parts] == ["x#1", "x#2"]
    assert [loss_text(part, qwen3) for part in parts] == [
        THINK + "<|im_end|>",
        "<think>\ne\n</think>\n\n4<|im_end|>",
    ]
    stripped = tokenize_example(example, base, TemplateOptions(reasoning="strip"))
    assert loss_text(stripped, base) == "12<|im_end|>4<|im_end|>"


def test_reasoning_content_that_the_template_would_drop(llama3):
    example = Example("x", "f:3", (Message("user", "a"), Message("assistant", "b", "because")))
    with pytest.raises(
        BadRow,
        match=(
            r"f:3: expected a chat template that prints reasoning_content, found that it leaves out"
            r" turn 2's; fix"
        ),
    ):
        tokenize_example(example, llama3)
    assert (
        loss_text(tokenize_example(example, llama3, TemplateOptions(reasoning="strip")), llama3)
        == "b<|eot_id|>"
    )


def test_strip_refuses_what_it_cannot_strip(base):
    strip = TemplateOptions(reasoning="strip")
    with pytest.raises(BadRow, match="expected <think> and </think> in pairs"):
        tokenize_example(chat("a", "<think>b"), base, strip)
    with pytest.raises(
        BadRow, match="expected an answer after the reasoning, found only reasoning"
    ):
        tokenize_example(chat("a", "<think>b</think>\n"), base, strip)
    with pytest.raises(DataError, match="strip changes the response that logprob belongs to"):
        tokenize_example(
            chat("a", "<think>b</think>c", raw_response=True, response_logprobs=(0.0,)), base, strip
        )


def test_pre_templated_text(base):
    """s1 and reasoning_ladder rows: loss after the response template; user turns in between are
    masked."""
    s1 = (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\nt\n<|im_start|>answer\nAnswer:"
        " 4<|im_end|>\n"
    )
    options = TemplateOptions(response_template="<|im_start|>assistant\n")
    sample = tokenize_example(Example("x", "f:1", text=s1), base, options)
    assert whole_text(sample, base) == s1
    assert (
        loss_text(sample, base) == "<|im_start|>think\nt\n<|im_start|>answer\nAnswer: 4<|im_end|>"
    )
    two = "".join(
        f"<|im_start|>user\nq{i}<|im_end|>\n<|im_start|>assistant\na{i}<|im_end|>\n" for i in (1, 2)
    )
    assert (
        loss_text(tokenize_example(Example("x", "f:1", text=two), base, options), base)
        == "a1<|im_end|>a2<|im_end|>"
    )


def test_pre_templated_text_equals_messages(llama3):
    """The same conversation, templated before or now: identical ids and masks."""
    by_messages = tokenize_example(chat("1+1?", "2", "2+2?", "4"), llama3)
    options = TemplateOptions(response_template="<|start_header_id|>assistant<|end_header_id|>\n\n")
    by_text = tokenize_example(
        Example("x", "f:1", text=whole_text(by_messages, llama3)), llama3, options
    )
    assert (
        by_text.input_ids.tolist() == by_messages.input_ids.tolist()
        and by_text.loss_mask.tolist() == by_messages.loss_mask.tolist()
    )


def test_text_refusals(base):
    text = Example(
        "x", "f:1", text="<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    with pytest.raises(
        DataError,
        match=(
            r"f:1: pre-templated text rows need data.response_template.*this row has"
            r" '<\|im_start\|>assistant'"
        ),
    ):
        tokenize_example(text, base)
    with pytest.raises(
        BadRow,
        match=(
            r"expected the response template .* in the text, found none; fix: in YAML write .* with"
            r" double quotes"
        ),
    ):
        tokenize_example(text, base, TemplateOptions(response_template="<|im_start|>assistant\\n"))
    with pytest.raises(
        BadRow,
        match=(
            r"expected one 'A:' \(where a turn ends is only known for ChatML and Llama 3\), found 2"
        ),
    ):
        tokenize_example(
            Example("x", "f:1", text="Q: a A: b Q: c A: d"),
            base,
            TemplateOptions(response_template="A:"),
        )


def test_all_masked_and_all_ones_masks_are_refused(base):
    with pytest.raises(
        BadRow, match=r"expected at least one token with loss, found none in \d+ tokens"
    ):
        tokenize_example(
            Example("x", "f:1", text="Q: a A:"), base, TemplateOptions(response_template="A:")
        )
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{%"
        " endfor %}"
    )
    tokenizer = load_tokenizer(base.name_or_path)
    tokenizer.chat_template = template
    with pytest.raises(
        BadRow, match=r"expected a prompt before the answer, found loss from the first token on"
    ):
        tokenize_example(chat("a", "b"), tokenizer)


def test_where_tokens_would_merge_prompt_and_answer_are_tokenised_apart(base):
    """In one piece the prompt's last blank and the answer's first word are one token, which no
    engine could sample after that prompt."""
    tokenizer = load_tokenizer(base.name_or_path)
    tokenizer.chat_template = (
        "{% for m in messages %}The {{ m.content }}<|im_end|>{% endfor %}{% if"
        " add_generation_prompt %}The {% endif %}"
    )
    sample = tokenize_example(chat("a", "answer"), tokenizer)
    prompt = tokenizer.encode("The a<|im_end|>The ", add_special_tokens=False)
    assert tokenizer.encode("The a<|im_end|>The answer", add_special_tokens=False)[
        : len(prompt)
    ] != (prompt)
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert not sample.loss_mask[: len(prompt)].any() and sample.loss_mask[len(prompt) :].all()
    assert loss_text(sample, tokenizer) == "answer<|im_end|>"


def test_raw_response_is_rendered_as_rethinking_sft(base):
    """As Rethinking SFT's code does it: template on the prompt, then tokenizer(response) + [eos].

    Log-probs are aligned with the response and the eos.
    """
    row = {"message": [{"role": "user", "content": "1+1?"}], "response": THINK, "advantage": 0.5}
    response_ids = [*base.encode(THINK, add_special_tokens=False), base.eos_token_id]
    row["logprob"] = [-float(i + 1) for i in range(len(response_ids))]
    sample = tokenize_example(from_scored(RawRow("f:1", row), ReadOptions()), base)
    assert (
        whole_text(sample, base)
        == f"<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{THINK}<|endoftext|>"
    )
    prompt = len(sample.input_ids) - len(response_ids)
    assert sample.input_ids[prompt:].tolist() == response_ids and sample.advantage == 0.5
    assert sample.old_logprobs_n.tolist() == [0.0] * prompt + row["logprob"]
    assert np.flatnonzero(sample.loss_mask).tolist() == list(range(prompt, len(sample.input_ids)))
    row["logprob"] = row["logprob"][:-1]
    with pytest.raises(
        BadRow,
        match=(
            rf"expected {len(response_ids)} log-probs .*found {len(response_ids) - 1}; fix: use the"
            r" tokenizer"
        ),
    ):
        tokenize_example(from_scored(RawRow("f:1", row), ReadOptions()), base)


TEXTS = st.text(alphabet="ab 12\n.<>|é🙂", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_mask_property(base, turns):
    """For any conversation: ids equal those of the rendered whole, and the loss tokens decode to
    the answers with their end tokens."""
    example = chat(*[text for pair in turns for text in pair])
    try:
        sample = tokenize_example(example, base)
    except BadRow as bad:
        assert bad.reason == "tokens merge at a turn boundary"
        return
    conversation = [{"role": m.role, "content": m.content} for m in example.messages]
    assert sample.input_ids.tolist() == base.apply_chat_template(
        conversation, tokenize=True, return_dict=False
    )
    assert loss_text(sample, base) == "".join(answer + "<|im_end|>" for _, answer in turns)
    assert not sample.loss_mask[0]


def test_a_template_that_refuses_a_conversation(base):
    tokenizer = load_tokenizer(base.name_or_path)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        BadRow,
        match=(
            r"expected a conversation that the chat template accepts, found roles must alternate"
            r" .*\['user'"
        ),
    ):
        tokenize_example(chat("a", "b"), tokenizer)


def test_template_sources(base_dir, llama3_dir, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}{% if"
        " add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = load_tokenizer(base_dir, chat_template=template)
    assert (
        whole_text(tokenize_example(chat("a", "b"), tokenizer), tokenizer)
        == "[user]a<|endoftext|>[assistant]b<|endoftext|>"
    )
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert load_tokenizer(tmp_path / "saved").chat_template == template.read_text(), (
        "an exported folder carries the template used"
    )
    bare = load_tokenizer(llama3_dir)
    bare.chat_template = None
    with pytest.raises(
        DataError,
        match=(
            r"d.jsonl:1: expected a chat template .*found a tokenizer that has none and no"
            r" <\|im_start\|>"
        ),
    ):
        tokenize_example(chat("a", "b"), bare)


def test_tokenizer_refusals(tmp_path, base_dir):
    with pytest.raises(
        ModelError,
        match=(
            r"expected a tokenizer \(tokenizer.json or .*\), found none of these files; fix:"
            r" model.tokenizer"
        ),
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(
        ModelError,
        match=r"absent: expected the folder or hub id of a tokenizer, found no such folder",
    ):
        load_tokenizer("absent")
    broken = shutil.copytree(base_dir, tmp_path / "broken")
    (broken / "tokenizer.json").write_bytes((base_dir / "tokenizer.json").read_bytes()[:500])
    with pytest.raises(
        ModelError, match=r"expected a loadable tokenizer, found .*; fix: copy it again"
    ):
        load_tokenizer(broken)
    content = json.loads((base_dir / "tokenizer.json").read_text())
    content["model"]["vocab"]["a"] = 2**31  # 8 GiB in the library
    (broken / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"token ids up to 16,777,216, found 2147483648; fix: "):
        load_tokenizer(broken)
    with pytest.raises(ModelError, match=r"nope.jinja: expected a Jinja chat template"):
        load_tokenizer(base_dir, chat_template=tmp_path / "nope.jinja")


def test_fingerprint_follows_every_tokenizer_byte(base_dir, qwen3_dir, tmp_path):
    copy = shutil.copytree(qwen3_dir, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"weights do not count")
    same = tokenizer_fingerprint(qwen3_dir)
    assert tokenizer_fingerprint(copy) == same and len(same) == 64
    others = {same, tokenizer_fingerprint(base_dir), tokenizer_fingerprint(copy, chat_template="x")}
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        changed = shutil.copytree(qwen3_dir, tmp_path / file)
        (changed / file).write_bytes((changed / file).read_bytes() + b" ")
        others.add(tokenizer_fingerprint(changed))
    assert len(others) == 6


def test_rendered_sample_marks_loss_tokens(qwen3):
    text = render_sample(tokenize_example(chat("3*4?", "é12"), qwen3), qwen3)
    marked = [
        text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)
    ]
    assert marked == ["<think>\n\n</think>\n\né12<|im_end|>"] and text.plain.startswith(
        "<|im_start|>user\n3*4?"
    )
