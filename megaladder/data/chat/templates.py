"""Which text of a conversation is learned: the chat template rendered turn by turn.

Turn i begins where `template(messages[:i] + generation prompt)` ends and stops where
`template(messages[:i+1])` ends. That is only right when both are prefixes of `template(messages)`,
so it is checked for every turn of every row. Templates that rewrite earlier turns (Qwen3 drops
their `<think>` blocks) fail the check with the ways out; nothing is guessed. Pre-templated `text`
gets its spans from the response template instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from megaladder.data.chat.tokenizer import CHATML_TOKENS
from megaladder.data.read import BadRow
from megaladder.errors import DataError
from megaladder.types import Example, Message, Tokenizer


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How conversations become tokens.

    `reasoning`: keep = train every assistant turn as the data has it; strip = remove `<think>`
    blocks and reasoning_content first (NoCoT); last-turn = loss on the last assistant turn only,
    earlier ones as the template prints them; split = one sample per assistant turn, each with loss
    on its last turn (what the model sees when it is used turn by turn). `response_template`: for
    `text` rows only.
    """

    reasoning: Literal["keep", "strip", "last-turn", "split"] = "keep"
    response_template: str | None = None
    # further template variables, e.g. {"enable_thinking": False}
    template_kwargs: dict[str, Any] = field(default_factory=dict)


# start of an assistant turn → start of the user turn that ends it, for pre-templated text with
# several turns
_TURN_STARTS = {
    "<|im_start|>assistant": "<|im_start|>user",
    "<|start_header_id|>assistant<|end_header_id|>": "<|start_header_id|>user<|end_header_id|>",
}


_THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def render(
    example: Example, tokenizer: Tokenizer, count: int, options: TemplateOptions, prompt: bool
) -> str:
    """The template over the first `count` messages, with the generation prompt if `prompt`."""
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise DataError(
            f"{example.where}: expected a chat template for conversations, found a tokenizer that"
            f" has none and no {' / '.join(CHATML_TOKENS)} tokens for the default one; fix:"
            " model.chat_template: a Jinja file"
        )
    conversation = [{"role": m.role, "content": m.content} for m in example.messages[:count]]
    for entry, message in zip(conversation, example.messages, strict=False):
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
    try:
        return tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=prompt, **options.template_kwargs
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = [message.role for message in example.messages[:count]]
        raise BadRow(
            example.where,
            "template refuses it",
            "a conversation that the chat template accepts",
            f"{error} (roles {roles})",
            "reorder the turns",
        ) from error


def chat_spans(
    example: Example, tokenizer: Tokenizer, options: TemplateOptions
) -> tuple[str, list[tuple[str, str]]]:
    """(rendered text, [(text before the answer, text through it)] per trained turn), each checked
    to be a prefix of the rendered text."""
    last = len(example.messages) - 1
    full = render(example, tokenizer, last + 1, options, prompt=False)
    trained = [
        index for index, message in enumerate(example.messages) if message.role == "assistant"
    ]
    if options.reasoning in ("last-turn", "split"):
        trained = trained[-1:]
    spans = []
    for index in trained:
        before = render(example, tokenizer, index, options, prompt=True)
        through = (
            full if index == last else render(example, tokenizer, index + 1, options, prompt=False)
        )
        if not (full.startswith(through) and through.startswith(before)):
            raise _unstable(example, index, full, through if through.startswith(before) else before)
        reasoning = (example.messages[index].reasoning_content or "").strip()
        if reasoning and reasoning not in through[len(before) :]:
            raise BadRow(
                example.where,
                "template drops reasoning",
                "a chat template that prints reasoning_content",
                "that it leaves it out",
                "data.reasoning: strip, put the reasoning into content, or model.chat_template: one"
                " that prints it",
            )
        spans.append((before, through))
    return full, spans


def _unstable(example: Example, index: int, full: str, part: str) -> BadRow:
    """Names the place where the rendering of a prefix differs from that of the whole
    conversation."""
    same = next(
        (i for i, (a, b) in enumerate(zip(full, part, strict=False)) if a != b),
        min(len(full), len(part)),
    )
    cause = "an earlier turn is rendered differently once others follow"
    if "<think>" in part[max(same - 10, 0) : same + 10]:
        cause = (
            "the <think> block of an earlier turn is dropped once others follow (Qwen3-style"
            " template)"
        )
    found = (
        f"that {cause}: alone {part[same : same + 30]!r}, in the whole {full[same : same + 30]!r}"
        f" (turn {index + 1})"
    )
    fix = (
        "train one sample per assistant turn (data.reasoning: split), only the last turn"
        " (data.reasoning: last-turn), or set model.chat_template to one that keeps every turn"
    )
    return BadRow(
        example.where,
        "template not prefix-stable",
        "a chat template that renders each turn the same whatever follows",
        found,
        fix,
    )


def text_spans(example: Example, response_template: str | None) -> list[tuple[str, str]]:
    """Spans of pre-templated text: from each response template to the next user turn or the end."""
    text = example.text or ""
    if not response_template:
        known = [start for start in _TURN_STARTS if start in text]
        hint = f"this row has {known[0]!r}" if known else "the string after which the answer starts"
        raise DataError(
            f"{example.where}: pre-templated text rows need data.response_template, found none;"
            f" fix: set it ({hint})"
        )
    starts = [match.end() for match in re.finditer(re.escape(response_template), text)]
    if not starts:
        hint = (
            'in YAML write "…\\n" with double quotes'
            if "\\n" in response_template
            else "correct data.response_template"
        )
        raise BadRow(
            example.where,
            "no response template",
            f"the response template {response_template!r} in the text",
            "none",
            hint,
        )
    user = next(
        (user for start, user in _TURN_STARTS.items() if response_template.startswith(start)), None
    )
    if len(starts) > 1 and user is None:
        expected = (
            f"one {response_template!r} (where a turn ends is only known for ChatML and Llama 3)"
        )
        raise BadRow(
            example.where,
            "several responses",
            expected,
            f"{len(starts)}",
            "use a messages file, or one answer per row",
        )
    ends = [text.find(user, start) if user else -1 for start in starts]
    return [
        (text[:start], text if end < 0 else text[:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def strip_reasoning(example: Example) -> Example:
    """Without `<think>…</think>` and reasoning_content in assistant turns."""
    messages = []
    for message in example.messages:
        if message.role == "assistant":
            content = _THINK.sub("", message.content)
            if "<think>" in content or "</think>" in content:
                raise BadRow(
                    example.where,
                    "unpaired <think>",
                    "<think> and </think> in pairs",
                    "one without the other",
                    "repair the answer",
                )
            if not content.strip():
                raise BadRow(
                    example.where,
                    "empty assistant turn",
                    "an answer after the reasoning",
                    "only reasoning",
                    "remove the row",
                )
            changed = content != message.content
            if changed and example.response_logprobs is not None:
                raise DataError(
                    f"{example.where}: data.reasoning: strip changes the response that logprob"
                    " belongs to; fix: drop the logprob column"
                )
            message = Message(message.role, content)
        messages.append(message)
    return replace(example, messages=tuple(messages))
