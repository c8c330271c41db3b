"""Which text of a conversation is learned: the chat template rendered turn by turn.

Turn i begins where `template(messages[:i] + generation prompt)` ends and stops where the control
token ends that `stops.turn_end` learned. That is only right when both are prefixes of what is
trained on, so it is checked for every turn of every row, and so is that the template left nothing
of the turn out. Templates that rewrite earlier turns (Qwen3 drops their `<think>` blocks) fail the
check with the ways out; nothing is guessed. One thing is put back: thinking that a template drops
from a last turn (DeepSeek-R1-Distill) is written as the model writes it, after the generation
prompt. Pre-templated `text` gets its spans from the response template instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from megaladder.data.chat.defaults import names_in
from megaladder.data.chat.rendering import TemplateFailed, render
from megaladder.data.chat.stops import special_token_ids, turn_end
from megaladder.data.chat.tokenizer import CHATML_TOKENS
from megaladder.data.chat.turns import REASONING_KEYS
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


# start of an assistant turn → start of the user turn that ends it, for pre-templated text with
# several turns
_TURN_STARTS = {
    "<|im_start|>assistant": "<|im_start|>user",
    "<|start_header_id|>assistant<|end_header_id|>": "<|start_header_id|>user<|end_header_id|>",
}


_THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
# what a template says that misses a field, or wants another order of roles
_MISSING = re.compile(r"has no attribute '(\w+)'")
_ORDER = re.compile(r"\b(roles?|system|alternat\w*|order|first|last|start|begin)\b", re.IGNORECASE)
_THINK_TAG = re.compile(r"</?think>")


class Renderer:
    """A tokenizer's chat template over the turns of examples."""

    def __init__(self, tokenizer: Tokenizer, options: TemplateOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._end = turn_end(tokenizer)
        self._special = special_token_ids(tokenizer)
        # of the example at hand, whose prefixes are asked for several times
        self._rendered: tuple[Example | None, dict[tuple[int, bool], str]] = (None, {})

    def text(self, example: Example, count: int, prompt: bool) -> str:
        """The template over the first `count` messages, with the generation prompt if `prompt`.

        Raises BadRow for a conversation that it does not take, DataError without a template."""
        if self._rendered[0] is not example:
            self._rendered = (example, {})
        known = self._rendered[1]
        if (count, prompt) not in known:
            known[count, prompt] = self._render(example, count, prompt)
        return known[count, prompt]

    def _render(self, example: Example, count: int, prompt: bool) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            raise DataError(
                f"{example.where}: expected a chat template for conversations, found a tokenizer"
                f" that has none and no {' / '.join(CHATML_TOKENS)} tokens for the default one;"
                " fix: model.chat_template: a Jinja file"
            )
        texts = list(template.values()) if isinstance(template, dict) else [template]
        arguments = dict(example.template_kwargs)
        for name in arguments:
            if not any(name in names_in(text) for text in texts):
                raise _left_out(example, f"the argument {name!r} of chat_template_kwargs", "column")
        arguments |= {"tools": list(example.tools)} if example.tools else {}
        turns = [turn_fields(message) for message in example.messages[:count]]
        try:
            return render(self._tokenizer, turns, add_generation_prompt=prompt, **arguments)
        except TemplateFailed as error:
            roles = [message.role for message in example.messages[:count]]
            expected = "a conversation that the chat template accepts"
            found = f"{error.said} (roles {roles})"
            fix = _way_out(error.said)
            raise BadRow(example.where, "template refuses it", expected, found, fix) from error

    def prompt(self, example: Example) -> str:
        """All turns, up to where the answer starts.

        Raises BadRow where the template leaves out tools or arguments."""
        count = len(example.messages)
        text = self.text(example, count, prompt=True)
        if example.tools and text == self.text(replace(example, tools=()), count, prompt=True):
            raise _left_out(example, "the tools", "column tools")
        return text

    def spans(self, example: Example) -> tuple[str, list[tuple[str, str]]]:
        """The rendered text, and a pair of texts for each trained turn.

        (text before the answer, text through it), each checked to be a prefix of the rendered text.
        """
        last = len(example.messages) - 1
        if self._doubles_thinking(example):
            apart = tuple(_thinking_apart(message) for message in example.messages)
            example = replace(example, messages=apart)
        full = self._finished(example, last + 1)
        if not self._end.printed:
            full += self._end.closing
        if example.tools and full == self._finished(replace(example, tools=()), last + 1):
            raise _left_out(example, "the tools", "column tools")
        trained = [
            index
            for index, message in enumerate(example.messages)
            if message.role == "assistant" and message.trained
        ]
        if self._options.reasoning in ("last-turn", "split"):
            trained = [index for index in trained if index == last]
        if last in trained:
            full = self._with_thinking(example, full)
        return full, [self._span(example, index, full) for index in trained]

    def _doubles_thinking(self, example: Example) -> bool:
        """Whether the template writes a block of its own before the thinking in a last answer.

        It reads thinking from a field only."""
        message = example.messages[-1]
        if message.role != "assistant" or "</think>" not in message.content:
            return False
        before = self.text(example, len(example.messages) - 1, prompt=True)
        written = self._finished(example, len(example.messages))
        answer = written[len(before) :] if written.startswith(before) else ""
        return answer.count("</think>") > message.content.count("</think>")

    def _finished(self, example: Example, count: int) -> str:
        return self._end.without_appendix(self.text(example, count, prompt=False))

    def _span(self, example: Example, index: int, full: str) -> tuple[str, str]:
        before = self.text(example, index, prompt=True)
        is_last = index == len(example.messages) - 1
        through = full if is_last else self._finished(example, index + 1)
        if not (full.startswith(through) and through.startswith(before)):
            raise _unstable(example, index, full, through if through.startswith(before) else before)
        _check_nothing_left_out(example, index, through[len(before) :])
        if not self._end.printed and not is_last:
            through += self._next_special(full[len(through) :])
        return before, through

    def _next_special(self, text: str) -> str:
        """The control token that `text` begins with, if it does."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)[:1]
        return self._tokenizer.decode(ids) if ids and ids[0] in self._special else ""

    def _with_thinking(self, example: Example, full: str) -> str:
        """The rendering with the thinking of the last turn, which some templates drop.

        `full`, or else the generation prompt and after it the answer as the model has to write it."""
        message, last = example.messages[-1], len(example.messages) - 1
        before = self.text(example, last, prompt=True)
        visible = message.content.rpartition("</think>")[2].strip()
        if full.startswith(before) and all(part in full[len(before) :] for part in _parts(message)):
            return full
        head, _, tail = full.rpartition(visible)
        if not before.startswith(head.rstrip()) or tail.strip() != self._end.closing:
            return full
        opening = before[len(head.rstrip()) :].strip()
        written = _as_written(message, opened=opening.endswith("<think>"))
        if opening not in ("", "<think>") or written is None:
            return full
        return before + written + tail


def _way_out(said: str) -> str:
    """What to do where a template refuses a conversation, by what it says."""
    another = "model.chat_template: one that takes such turns"
    if missing := _MISSING.search(said):
        return f"give the turns or their tool calls the field {missing[1]!r} that it reads, or {another}"
    return f"reorder the turns, or {another}" if _ORDER.search(said) else another


def turn_fields(message: Message) -> dict[str, Any]:
    """A message as templates take it; reasoning under each name that some of them read."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        fields |= dict.fromkeys(REASONING_KEYS, message.reasoning_content)
    if message.tool_calls:
        fields["tool_calls"] = list(message.tool_calls)
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        fields["name"] = message.name
    return fields


def _thinking_apart(message: Message) -> Message:
    """With one leading block of thinking as the reasoning that it is."""
    inside, mark, visible = message.content.partition("</think>")
    inside = inside.strip().removeprefix("<think>").strip()
    if message.role != "assistant" or not mark or message.reasoning_content or "<think>" in inside:
        return message
    return replace(message, content=visible.lstrip("\n"), reasoning_content=inside or None)


def _parts(message: Message) -> list[str]:
    """What a rendering of the turn has to show: reasoning, and the content around think tags."""
    parts = [message.reasoning_content or "", *_THINK_TAG.split(message.content)]
    return [part.strip() for part in parts if part.strip()]


def _as_written(message: Message, opened: bool) -> str | None:
    """The answer with its thinking as a model writes it after the generation prompt.

    Which has `opened` the thinking, or not. None where the row does not say how it would be
    written."""
    if not opened:
        return None if message.reasoning_content else message.content
    if message.reasoning_content:
        return f"{message.reasoning_content.strip()}\n</think>\n\n{message.content}"
    if "</think>" in message.content:
        return message.content.lstrip().removeprefix("<think>").lstrip("\n")
    return f"\n</think>\n\n{message.content}"


def _check_nothing_left_out(example: Example, index: int, answer: str) -> None:
    """Raises BadRow where the rendered answer lacks some of what the row's turn holds."""
    message = example.messages[index]
    for call in message.tool_calls:
        if call["function"]["name"] not in answer:
            raise _left_out(example, f"tool calls (turn {index + 1})", "turn")
    missing = [part for part in _parts(message) if part not in answer]
    if not missing:
        return
    visible = message.content.rpartition("</think>")[2].strip()
    if missing == [visible]:
        raise _left_out(example, f"the text {visible[:30]!r} (turn {index + 1})", "turn")
    what = "reasoning_content" if message.reasoning_content else "<think> blocks"
    raise BadRow(
        example.where,
        "template drops reasoning",
        f"a chat template that prints {what}",
        f"that it leaves out turn {index + 1}'s",
        "data.reasoning: strip, put the reasoning into content, or model.chat_template: one that"
        " prints it",
    )


def _left_out(example: Example, what: str, remove: str) -> BadRow:
    return BadRow(
        example.where,
        "template leaves something out",
        f"a chat template that prints or reads {what}",
        "that it does not",
        f"model.chat_template: one that does, or remove the {remove}",
    )


def _unstable(example: Example, index: int, full: str, part: str) -> BadRow:
    """Names the place where a prefix is rendered differently.

    From the rendering of the whole conversation."""
    pairs = zip(full, part, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(part)))
    found = f"{part[same : same + 30]!r}, in the whole {full[same : same + 30]!r}"
    if index == len(example.messages) - 1:
        return BadRow(
            example.where,
            "answer not after the prompt",
            "a chat template whose finished answer goes on from its generation prompt",
            f"that they differ: the prompt has {found} (turn {index + 1})",
            "data.reasoning: strip if the prompt closes the thinking, other chat_template_kwargs,"
            " or model.chat_template: one that keeps what its generation prompt opens",
        )
    cause = "an earlier turn is rendered differently once others follow"
    if "<think>" in part[max(same - 10, 0) : same + 10]:
        cause = (
            "the <think> block of an earlier turn is dropped once others follow (Qwen3-style"
            " template)"
        )
    return BadRow(
        example.where,
        "template not prefix-stable",
        "a chat template that renders each turn the same whatever follows",
        f"that {cause}: alone {found} (turn {index + 1})",
        "train one sample per assistant turn (data.reasoning: split), only the last turn"
        " (data.reasoning: last-turn), or set model.chat_template to one that keeps every turn",
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
            if not content.strip() and not message.tool_calls:
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
            message = replace(message, content=content, reasoning_content=None)
        messages.append(message)
    return replace(example, messages=tuple(messages))
