"""Problems as prompts: their token ids up to where the answer starts."""

from __future__ import annotations

from collections.abc import Sequence

from megaladder.data.chat.rendering import render
from megaladder.data.chat.templates import Renderer, TemplateOptions, turn_fields
from megaladder.errors import DataError
from megaladder.types import Example, Message, Problem, Tokenizer


def chat_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, problem: Problem | None = None
) -> str:
    """Messages through the chat template up to where the answer starts.

    With the tools and the template's arguments that the row of `problem` gives. Raises BadRow where
    the template leaves them out."""
    if problem is None or not (problem.tools or problem.template_kwargs):
        turns = [turn_fields(message) for message in messages]
        return render(tokenizer, turns, add_generation_prompt=True)
    example = Example(
        problem.id,
        where=f"problem {problem.id}",
        messages=tuple(messages),
        tools=problem.tools,
        template_kwargs=problem.template_kwargs,
    )
    return Renderer(tokenizer, TemplateOptions()).prompt(example)


def refuse_tools(problem: Problem) -> None:
    """Raises DataError for a problem with tools or arguments of a template, where there is none."""
    if problem.tools or problem.template_kwargs:
        what = "tools" if problem.tools else "chat_template_kwargs"
        raise DataError(
            f"problem {problem.id}: expected a chat template that prints its {what}, found a prompt"
            f" without a template; fix: model.chat_template: one that does, or remove the column"
            f" {what}"
        )


def render_prompts(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each prompt up to where the answer starts.

    Raw text as it is, messages through the chat template.

    A tokenizer without any template gets the messages' text, with its own special tokens, as a base
    model would.
    """
    rendered = [_rendered(problem, tokenizer) for problem in problems]
    ids: list[tuple[int, ...]] = [()] * len(rendered)
    for raw in (False, True):
        places = [place for place, (_, is_raw) in enumerate(rendered) if is_raw is raw]
        if places:
            found = tokenizer([rendered[place][0] for place in places], add_special_tokens=raw)[
                "input_ids"
            ]
            for place, one in zip(places, found, strict=True):
                ids[place] = tuple(one)
    return ids


def _rendered(problem: Problem, tokenizer: Tokenizer) -> tuple[str, bool]:
    """The prompt's text, and whether it is raw: without control tokens of a template."""
    if problem.prompt_text is None and tokenizer.chat_template is not None:
        return chat_prompt(problem.prompt, tokenizer, problem), False
    refuse_tools(problem)
    plain = "\n\n".join(message.content for message in problem.prompt) + "\n"
    return problem.prompt_text or plain, True
