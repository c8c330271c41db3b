"""Where an answer ends: what the chat template puts after it, and the token ids that stop an engine.

Training teaches the token that ends a turn and generation stops at it: both ask here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megaladder.data.chat.rendering import TemplateFailed, render
from megaladder.data.sources.find import HUB_ID
from megaladder.data.sources.hub import hub_failures, limit_patience
from megaladder.errors import ModelError
from megaladder.types import Tokenizer

_ANSWER, _NEXT = "ANSWER", "NEXT"
GENERATION_CONFIG = "generation_config.json"


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
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    turns += [{"role": "user", "content": _NEXT}] if goes_on else []
    try:
        text = render(tokenizer, turns)
    # a template for other conversations than this: the rows' own rendering says what is wrong
    except TemplateFailed:
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


def stop_token_ids(
    tokenizer: Tokenizer, model: str | Path | None = None, revision: str | None = None
) -> tuple[int, ...]:
    """Every token id that ends an answer; all that ask an engine for samples stop at these.

    The control token with which the chat template ends a turn, the tokenizer's end-of-sequence, and
    those of the model's generation_config.json. `model`: a folder, or a hub id at `revision`.
    Raises ModelError for a damaged file, and where the hub refuses to say whether there is one.
    """
    stops: list[int] = []
    closing = turn_end(tokenizer).closing
    if closing:
        stops += tokenizer.encode(closing, add_special_tokens=False)[:1]
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys([*stops, *_generation_stops(model, revision)]))


def _generation_file(model: str | Path | None, revision: str | None) -> Path | None:
    """Of a folder, or of a hub id, downloaded or cached; None where the model has none."""
    if model is None or Path(model).exists() or not HUB_ID.fullmatch(str(model)):
        file = Path(model or "") / GENERATION_CONFIG
        return file if model is not None and file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    limit_patience()
    try:
        return Path(hf_hub_download(str(model), GENERATION_CONFIG, revision=revision))
    # also without network, where the cache has the model without this file
    except EntryNotFoundError:
        return None
    except hub_failures() as error:
        raise ModelError(
            f"{model} at {revision or 'main'}: expected the hub to say which tokens end an answer"
            f" ({GENERATION_CONFIG}), found {type(error).__name__}: {error}; fix: model.path and"
            " model.revision, or a folder"
        ) from error


def _generation_stops(model: str | Path | None, revision: str | None) -> list[int]:
    file = _generation_file(model, revision)
    if file is None:
        return []
    try:
        found = json.loads(file.read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{file}: expected the settings of generation as a JSON object, found {error}; fix:"
            " copy the file again"
        ) from error
    ids = found if isinstance(found, list) else [found]
    return [index for index in ids if isinstance(index, int) and not isinstance(index, bool)]
