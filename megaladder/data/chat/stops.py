"""Where an answer ends: what the chat template puts after it, and the token ids that stop an engine.

Training teaches the token that ends a turn and generation stops at it: both ask here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megaladder.errors import ModelError
from megaladder.types import Tokenizer

_ANSWER, _NEXT = "ANSWER", "NEXT"


def special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of all control tokens, among them end-of-turn and end-of-sequence."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a chat template goes on after an assistant's answer.

    `closing`: the control token that ends the turn, "" where the template has none. `printed`:
    whether it stands there after the last turn too (in GLM's it is the next turn's first token).
    `appendix`: what a finished conversation ends with that is no part of its last turn, such as the
    header of a next answer that nobody asked for (Llama 3's first template).
    """

    closing: str = ""
    printed: bool = True
    appendix: str = ""

    def without_appendix(self, text: str) -> str:
        """A rendered conversation up to the end of its last turn."""
        return text.removesuffix(self.appendix) if self.appendix else text


def turn_end(tokenizer: Tokenizer) -> TurnEnd:
    """Learned from two renderings: of a finished conversation, and of one that goes on."""
    if tokenizer.chat_template is None:
        return TurnEnd()
    finished = _first_special(_after_answer(tokenizer, goes_on=False), tokenizer)
    if finished is not None:
        closing, rest = finished
        return TurnEnd(closing, appendix=rest.lstrip())
    following = _first_special(_after_answer(tokenizer, goes_on=True), tokenizer)
    return TurnEnd() if following is None else TurnEnd(following[0], printed=False)


def _after_answer(tokenizer: Tokenizer, goes_on: bool) -> str:
    """What the template prints after an answer, up to the next user's text."""
    from jinja2.exceptions import TemplateError

    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    turns += [{"role": "user", "content": _NEXT}] if goes_on else []
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    # a template for other conversations than this: the rows' own rendering says what is wrong
    except (TemplateError, TypeError, ValueError):
        return ""
    return text.rpartition(_ANSWER)[2].partition(_NEXT)[0] if _ANSWER in text else ""


def _first_special(text: str, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """The first control token in `text`, and what follows it."""
    special = special_token_ids(tokenizer)
    for index in tokenizer.encode(text, add_special_tokens=False):
        if index in special:
            token = tokenizer.decode([index])
            return token, text.partition(token)[2]
    return None


def stop_token_ids(tokenizer: Tokenizer, model: str | Path | None = None) -> tuple[int, ...]:
    """Every token id that ends an answer; all that ask an engine for samples stop at these.

    The control token with which the chat template ends a turn, the tokenizer's end-of-sequence, and
    those of the model folder's generation_config.json. Raises ModelError for a damaged one.
    """
    stops: list[int] = []
    closing = turn_end(tokenizer).closing
    if closing:
        stops += tokenizer.encode(closing, add_special_tokens=False)[:1]
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys([*stops, *_generation_stops(model)]))


def _generation_stops(model: str | Path | None) -> list[int]:
    file = Path(model or "") / "generation_config.json"
    if model is None or not file.is_file():
        return []
    try:
        found = json.loads(file.read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{file}: expected the settings of generation as a JSON object, found {error}; fix:"
            " copy the file again"
        ) from error
    ids = found if isinstance(found, list) else [found]
    return [index for index in ids if isinstance(index, int) and not isinstance(index, bool)]
