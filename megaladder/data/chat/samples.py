"""Example → TokenSample: token ids and the loss mask.

Loss is on every trained assistant turn including its end-of-turn token (not on white space that a
template prints after it). Which text that is comes from `templates`. Where a token would span the
boundary of prompt and answer, both are tokenised apart, as the engine sees them. Raw responses
(Rethinking SFT) are tokenizer(response) + [eos]. No special token is ever added by the tokenizer:
templates and pre-templated text carry theirs. Not done here: truncation and storage
(`store_build`), batching (`pack`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from megaladder.data.chat.stops import special_token_ids
from megaladder.data.chat.templates import Renderer, TemplateOptions, strip_reasoning, text_spans
from megaladder.data.read import BadRow
from megaladder.errors import DataError
from megaladder.types import Example, Tokenizer, TokenSample

if TYPE_CHECKING:
    from rich.text import Text


def split_turns(example: Example) -> list[Example]:
    """One example per trained assistant turn, each ending with it (`reasoning: split`).

    Ids get `#1`, `#2`… when there are several."""
    ends = [
        index + 1
        for index, message in enumerate(example.messages)
        if message.role == "assistant" and message.trained
    ]
    if not ends:
        return [example]
    if len(ends) == 1:
        return [replace(example, messages=example.messages[: ends[0]])]
    return [
        replace(example, id=f"{example.id}#{turn}", messages=example.messages[:end])
        for turn, end in enumerate(ends, 1)
    ]


def tokenize_example(
    example: Example, tokenizer: Tokenizer, options: TemplateOptions | None = None
) -> TokenSample:
    """One sample, not truncated.

    Raises BadRow (a DataError) for a row that cannot be rendered or has no usable loss mask."""
    result = tokenize_batch([example], tokenizer, options or TemplateOptions())[0]
    if isinstance(result, BadRow):
        raise result
    return result


def tokenize_batch(
    examples: Sequence[Example], tokenizer: Tokenizer, options: TemplateOptions
) -> list[TokenSample | BadRow]:
    """Like tokenize_example for many, with one call of the tokenizer (which uses all cores).

    A bad row is returned in its place."""
    special, renderer = special_token_ids(tokenizer), Renderer(tokenizer, options)
    plans: list[_Plan | BadRow] = []
    for example in examples:
        try:
            plans.append(_plan(example, tokenizer, options, renderer))
        except BadRow as bad:
            plans.append(bad)
    texts = list(
        dict.fromkeys(text for plan in plans if isinstance(plan, _Plan) for text in plan.texts)
    )
    ids = (
        dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
        if texts
        else {}
    )
    results: list[TokenSample | BadRow] = []
    for example, plan in zip(examples, plans, strict=True):
        try:
            if isinstance(plan, BadRow):
                raise plan
            results.append(
                _check_mask(example, plan.finish([ids[text] for text in plan.texts], special))
            )
        except BadRow as bad:
            results.append(bad)
    return results


@dataclass(frozen=True, slots=True)
class _Plan:
    """Texts to tokenise, and what to do with their ids.

    The ids come in the same order, with the special token ids."""

    texts: list[str]
    finish: Callable[[list[list[int]], frozenset[int]], TokenSample]


def _plan(
    example: Example, tokenizer: Tokenizer, options: TemplateOptions, renderer: Renderer
) -> _Plan:
    if example.text is not None:
        if options.reasoning == "strip":
            raise DataError(
                f"{example.where}: data.reasoning: strip needs conversations, found pre-templated"
                " text; fix: strip it in the data file"
            )
        return _plan_spans(
            example, tokenizer, example.text, text_spans(example, options.response_template)
        )
    if options.reasoning == "strip":
        example = strip_reasoning(example)
    if example.raw_response:
        return _plan_raw(example, tokenizer, renderer)
    return _plan_spans(example, tokenizer, *renderer.spans(example))


def _plan_spans(
    example: Example, tokenizer: Tokenizer, full: str, spans: list[tuple[str, str]]
) -> _Plan:
    def finish(ids: list[list[int]], special: frozenset[int]) -> TokenSample:
        whole, bounds = ids[0], [len(part) for part in ids[1:]]
        if any(whole[: len(part)] != part for part in ids[1:]):
            whole, bounds = _tokenized_apart(example, tokenizer, full, spans)
        mask = np.zeros(len(whole), bool)
        for begin, end in zip(bounds[::2], bounds[1::2], strict=True):
            mask[begin : _end_of_turn(whole, begin, end, special, tokenizer)] = True
        return TokenSample(example.id, np.array(whole, np.int32), mask, advantage=example.advantage)

    return _Plan([full, *(text for span in spans for text in span)], finish)


def _tokenized_apart(
    example: Example, tokenizer: Tokenizer, full: str, spans: list[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """(ids, bounds in them) of prompts and answers tokenised one by one.

    In one piece, tokens would span their boundaries, and a model that generates cannot write such
    tokens.

    Raises BadRow where the pieces give another text than the whole (tokenizers that put a space
    before every text).
    """
    cuts = [len(text) for span in spans for text in span]
    pieces = [full[begin:end] for begin, end in pairwise([0, *cuts, len(full)])]
    tokenized = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    ids = [index for piece in tokenized for index in piece]
    whole = tokenizer.encode(full, add_special_tokens=False)
    if tokenizer.decode(ids) != tokenizer.decode(whole):
        expected = "prompt and answer to be the sample's text when tokenised one by one"
        fix = "remove white space at the answer's start"
        raise BadRow(
            example.where,
            "tokens merge at a turn boundary",
            expected,
            f"{tokenizer.decode(ids)[-60:]!r}",
            fix,
        )
    return ids, list(accumulate(len(piece) for piece in tokenized[:-1]))


def _end_of_turn(
    ids: list[int], begin: int, end: int, special: frozenset[int], tokenizer: Tokenizer
) -> int:
    """`end` without white space that follows the turn's last control token.

    The model stops there and never has to write it."""
    last = next((index for index in range(end - 1, begin - 1, -1) if ids[index] in special), None)
    if last is not None and not tokenizer.decode(ids[last + 1 : end]).strip():
        return last + 1
    return end


def _plan_raw(example: Example, tokenizer: Tokenizer, renderer: Renderer) -> _Plan:
    """Prompt through the template, response raw with an end-of-sequence token.

    As Rethinking SFT's OurSFTDataset."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{example.where}: raw responses need an end-of-sequence token, the tokenizer has none;"
            " fix: set eos_token in it"
        )
    prompt = renderer.text(example, len(example.messages) - 1, prompt=True)

    def finish(ids: list[list[int]], special: frozenset[int]) -> TokenSample:
        prompt_ids, response_ids = ids[0], [*ids[1], eos]
        mask = np.zeros(len(prompt_ids) + len(response_ids), bool)
        mask[len(prompt_ids) :] = True
        old_logprobs_n = None
        if example.response_logprobs is not None:
            if len(example.response_logprobs) != len(response_ids):
                raise BadRow(
                    example.where,
                    "logprob length",
                    f"{len(response_ids)} log-probs (response tokens with end-of-sequence)",
                    f"{len(example.response_logprobs)}",
                    "use the tokenizer that they were computed with",
                )
            old_logprobs_n = np.zeros(len(mask), np.float32)
            old_logprobs_n[len(prompt_ids) :] = example.response_logprobs
        return TokenSample(
            example.id,
            np.array(prompt_ids + response_ids, np.int32),
            mask,
            advantage=example.advantage,
            old_logprobs_n=old_logprobs_n,
        )

    return _Plan([prompt, example.messages[-1].content], finish)


def _check_mask(example: Example, sample: TokenSample) -> TokenSample:
    if not sample.loss_mask.any():
        raise BadRow(
            example.where,
            "no loss token",
            "at least one token with loss",
            f"none in {sample.num_tokens} tokens",
            "fill the answer",
        )
    if sample.loss_mask[0]:
        raise BadRow(
            example.where,
            "loss on every token",
            "a prompt before the answer",
            "loss from the first token on",
            "add the prompt",
        )
    return sample


def marked_sample(sample: TokenSample, tokenizer: Tokenizer) -> str:
    """The sample as plain text, ⟦…⟧ around what is learned: for output that is no terminal."""
    text = render_sample(sample, tokenizer)
    plain = text.plain
    for span in sorted(text.spans, key=lambda span: -span.start):
        if "bold" in str(span.style):
            plain = f"{plain[: span.start]}⟦{plain[span.start : span.end]}⟧{plain[span.end :]}"
    return plain


def render_sample(sample: TokenSample, tokenizer: Tokenizer) -> Text:
    """The sample as rich text: loss tokens bold green, the others dim. Control tokens are shown."""
    from rich.text import Text

    text = Text()
    bounds = [0, *(np.flatnonzero(np.diff(sample.loss_mask)) + 1).tolist(), sample.num_tokens]
    for begin, end in pairwise(bounds):
        style = "bold green" if sample.loss_mask[begin] else "dim"
        text.append(
            tokenizer.decode(sample.input_ids[begin:end].tolist(), skip_special_tokens=False),
            style=style,
        )
    return text
