"""Problems as prompts: their token ids up to where the answer starts."""

from __future__ import annotations

from collections.abc import Sequence

from megaladder.types import Problem, Tokenizer


def render_prompts(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each prompt up to where the answer starts: raw text as it is, messages through
    the chat template.

    A tokenizer without any template gets the messages' text, with its own special tokens, as a base
    model would.
    """
    rendered: list[tuple[str, bool]] = []
    for problem in problems:
        if problem.prompt_text is not None or tokenizer.chat_template is None:
            rendered.append(
                (
                    problem.prompt_text
                    or "\n\n".join(message.content for message in problem.prompt) + "\n",
                    True,
                )
            )
        else:
            turns = [
                {"role": message.role, "content": message.content} for message in problem.prompt
            ]
            rendered.append(
                (
                    tokenizer.apply_chat_template(
                        turns, tokenize=False, add_generation_prompt=True
                    ),
                    False,
                )
            )
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
