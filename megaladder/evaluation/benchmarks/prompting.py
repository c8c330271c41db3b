"""Problem → token ids, with the model's own chat template or as raw text.

What is used is part of the fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from megaladder.config.sections.evaluate import PromptSection
from megaladder.data.chat.prompts import chat_prompt, refuse_tools
from megaladder.data.chat.stops import stop_token_ids
from megaladder.errors import ConfigError
from megaladder.types import Message, Problem, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompter:
    """How messages become ids. Build it with `make_prompter`."""

    tokenizer: Tokenizer
    style: str  # chat or raw
    system: str | None = None
    suffix: str = ""
    stop_token_ids: tuple[int, ...] = ()  # that end an answer

    def text(self, problem: Problem) -> str:
        """The whole prompt as the model sees it."""
        if problem.prompt_text is not None:
            return problem.prompt_text + self.suffix
        if self.style == "raw":
            refuse_tools(problem)
        return self.render(problem.prompt, problem)

    def render(self, messages: Sequence[Message], problem: Problem | None = None) -> str:
        """Messages → text; `suffix` goes after the last one.

        `problem`: whose they are, where the template has to read further columns of its row."""
        *before, last = messages
        last = replace(last, content=last.content + self.suffix)
        head = [Message("system", self.system)] if self.system else []
        turns = [*head, *before, last]
        if self.style == "raw":
            return "\n\n".join(turn.content for turn in turns)
        return chat_prompt(turns, self.tokenizer, problem)

    def ids(self, text: str) -> tuple[int, ...]:
        """A chat template writes its own special tokens.

        Raw text gets the tokenizer's (a beginning-of-sequence, where it has one)."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=self.style == "raw"))

    def fingerprint(self) -> dict[str, Any]:
        """What decides the prompt besides the problem."""
        template = self.tokenizer.chat_template if self.style == "chat" else None
        return {
            "style": self.style,
            "system": self.system,
            "suffix": self.suffix,
            "chat_template_sha256": (
                hashlib.sha256(str(template).encode()).hexdigest() if template else None
            ),
        }


def make_prompter(
    tokenizer: Tokenizer,
    section: PromptSection,
    model: str | None,
    extra_suffix: str = "",
    revision: str | None = None,
) -> Prompter:
    """`section.style` auto: chat where the tokenizer has a template.

    `model`: its folder or hub id at `revision`, which may name further ends of an answer.
    `extra_suffix`: budget instructions (`budget.instruction`)."""
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if section.style == "chat" and not has_template:
        raise ConfigError(
            "prompt.style chat: this tokenizer has no chat template; fix: --prompt.style raw, or"
            " --model.chat-template FILE"
        )
    style = ("chat" if has_template else "raw") if section.style == "auto" else section.style
    return Prompter(
        tokenizer,
        style,
        section.system,
        section.suffix.replace("\\n", "\n") + extra_suffix,
        stop_token_ids(tokenizer, model, revision),
    )
