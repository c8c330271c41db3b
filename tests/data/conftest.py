"""Small real tokenizers: byte-level BPE trained on generated text, with templates that behave like
Qwen3's and Llama 3's."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The behaviour of Qwen3's template that matters here: reasoning is printed only after the last user
# turn, and there always.
QWEN3_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if not ns.found and message.role == 'user' %}
        {%- set ns.found = true %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set before = content.split('</think>')[0].rstrip('\\n') %}
            {%- set reasoning_content = before.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA3_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message.role +"
    " '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}{%- endfor %}{%- if"
    " add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%-"
    " endif %}"
)


def generated_text(rows: int = 400) -> list[str]:
    rng = random.Random(0)
    lines = []
    for _ in range(rows):
        a, b, c = (rng.randrange(2, 99) for _ in range(3))
        lines.append(
            f"What is {a}*{b}+{c}?\n\nFirst, {a}*{b}={a * b}. Then {a * b}+{c}={a * b + c}.\nThe"
            f" answer is \\boxed{{{a * b + c}}}.\n"
        )
    return lines


def build_tokenizer(
    folder: Path,
    special: list[str],
    bos: str | None,
    template: str | None,
    texts=None,
    vocab_size: int = 600,
) -> Path:
    """Writes a tokenizer folder; the first special token is end-of-sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts or generated_text(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0], bos_token=bos
    )
    fast.chat_template = template
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory) -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return build_tokenizer(tmp_path_factory.mktemp("qwen3"), special, None, QWEN3_TEMPLATE)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory) -> Path:
    """A base model's tokenizer: ChatML tokens, no template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return build_tokenizer(tmp_path_factory.mktemp("base"), special, None, None)


@pytest.fixture(scope="session")
def llama3_dir(tmp_path_factory) -> Path:
    special = [
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    return build_tokenizer(
        tmp_path_factory.mktemp("llama3"), special, "<|begin_of_text|>", LLAMA3_TEMPLATE
    )


@pytest.fixture(scope="session")
def qwen3(qwen3_dir):
    from megaladder.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(qwen3_dir)


@pytest.fixture(scope="session")
def base(base_dir):
    from megaladder.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(base_dir)


@pytest.fixture(scope="session")
def llama3(llama3_dir):
    from megaladder.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(llama3_dir)


@pytest.fixture
def tokenizer_of():
    """(folder, texts, vocab_size) → a ChatML tokenizer trained on these texts."""
    from megaladder.data.chat.tokenizer import load_tokenizer

    return lambda folder, texts, vocab_size: load_tokenizer(
        build_tokenizer(
            folder / "tokenizer",
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            None,
            None,
            texts,
            vocab_size,
        )
    )
