"""Example → TokenSample: chat template, loss mask, tokenizer loading and fingerprint.

Loss is on every assistant turn including its end-of-turn token (not on white space that a template
prints after it). Which tokens those are is found by rendering: turn i begins where
`template(messages[:i] + generation prompt)` ends and stops where `template(messages[:i+1])` ends.
That is only right when both are *token prefixes* of `template(messages)`, so it is checked for
every turn of every row. Templates that rewrite earlier turns (Qwen3 drops their `<think>` blocks)
fail the check with the ways out; nothing is guessed.

Pre-templated `text` gets its spans from the response template instead, raw responses (Rethinking
SFT) are tokenizer(response) + [eos]. No special token is ever added by the tokenizer: templates and
pre-templated text carry theirs. Not done here: truncation and storage (`store_build`), batching
(`pack`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megaladder.data.read import BadRow
from megaladder.errors import DataError, ModelError
from megaladder.types import Example, Message, TokenSample

if TYPE_CHECKING:
    from rich.text import Text

# For base models whose tokenizer has no chat template but the two ChatML tokens (Qwen bases). Keeps
# `reasoning_content` in every turn.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.reasoning_content"
    " %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}{{ message.content"
    " }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# start of an assistant turn → start of the user turn that ends it, for pre-templated text with
# several turns
_TURN_STARTS = {
    "<|im_start|>assistant": "<|im_start|>user",
    "<|start_header_id|>assistant<|end_header_id|>": "<|start_header_id|>user<|end_header_id|>",
}
_THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


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


# --- tokenizer
# ---------------------------------------------------------------------------------------------------------------------


def tokenizer_dir(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a tokenizer: `name` itself, or its files of a hub id at `revision`,
    downloaded or cached. Raises ModelError."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in _VOCABULARY_FILES):
            raise ModelError(
                f"{name}: expected a tokenizer ({' or '.join(_VOCABULARY_FILES)}), found none of"
                " these files; fix: model.tokenizer: a folder or hub id that has one"
            )
        return path
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(name)):
        raise ModelError(
            f"{name}: expected the folder or hub id of a tokenizer, found no such folder; fix:"
            " model.path or model.tokenizer"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(str(name), revision=revision, allow_patterns=list(TOKENIZER_FILES))
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"{name} at {revision or 'main'}: expected a tokenizer folder, or one on the hub or in"
            f" its cache, found {type(error).__name__}: {error}; fix: on a machine with network,"
            f" `hf download {name} --revision {revision or 'main'}`, or give a folder"
        ) from error


def load_tokenizer(
    name: str | Path,
    revision: str | None = None,
    chat_template: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The tokenizer with the chat template that training uses set on it (so that saving it writes
    that template).

    `chat_template`: path of a Jinja file that replaces the tokenizer's own. Without either,
    DEFAULT_CHAT_TEMPLATE if the vocabulary has the ChatML tokens; otherwise the template stays
    None, which `text` rows do not need. Raises ModelError.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_dir(name, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: expected a loadable tokenizer, found {type(error).__name__}: {error}; fix:"
            " copy it again"
        ) from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{chat_template}: expected a Jinja chat template, found {error}; fix:"
                " model.chat_template"
            ) from error
    elif tokenizer.chat_template is None and set(CHATML_TOKENS) <= set(tokenizer.get_vocab()):
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def tokenizer_fingerprint(folder: str | Path, chat_template: str | None = None) -> str:
    """sha256 over names and bytes of the tokenizer's files (templates included) and over the
    template in use, if another one is.

    Two folders with equal fingerprints give equal token ids. Stored with tokenised data,
    checkpoints and evaluations.
    """
    folder = Path(folder)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    files += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not files:
        raise ModelError(
            f"{folder}: expected tokenizer files ({', '.join(_VOCABULARY_FILES)}), found none; fix:"
            " model.tokenizer"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    digest.update(b"" if chat_template is None else b"template\0" + chat_template.encode("utf-8"))
    return digest.hexdigest()


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all control tokens, among them end-of-turn and end-of-sequence."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


# --- example → sample
# --------------------------------------------------------------------------------------------------------------


def split_turns(example: Example) -> list[Example]:
    """One example per assistant turn, each ending with it (`reasoning: split`). Ids get `#1`, `#2`…
    when there are several."""
    ends = [
        index + 1 for index, message in enumerate(example.messages) if message.role == "assistant"
    ]
    if len(ends) < 2:
        return [example]
    return [
        replace(example, id=f"{example.id}#{turn}", messages=example.messages[:end])
        for turn, end in enumerate(ends, 1)
    ]


def tokenize_example(
    example: Example, tokenizer: Any, options: TemplateOptions | None = None
) -> TokenSample:
    """One sample, not truncated. Raises BadRow (a DataError) for a row that cannot be rendered or
    has no usable loss mask."""
    result = tokenize_batch([example], tokenizer, options or TemplateOptions())[0]
    if isinstance(result, BadRow):
        raise result
    return result


def tokenize_batch(
    examples: Sequence[Example], tokenizer: Any, options: TemplateOptions
) -> list[TokenSample | BadRow]:
    """Like tokenize_example for many, with one call of the tokenizer (which uses all cores). A bad
    row is returned in its place."""
    special = special_token_ids(tokenizer)
    plans: list[_Plan | BadRow] = []
    for example in examples:
        try:
            plans.append(_plan(example, tokenizer, options))
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
    """Texts to tokenise, and what to do with their ids (in the same order) and the special token
    ids."""

    texts: list[str]
    finish: Callable[[list[list[int]], frozenset[int]], TokenSample]


def _plan(example: Example, tokenizer: Any, options: TemplateOptions) -> _Plan:
    if example.text is not None:
        if options.reasoning == "strip":
            raise DataError(
                f"{example.where}: data.reasoning: strip needs conversations, found pre-templated"
                " text; fix: strip it in the data file"
            )
        return _plan_spans(
            example, tokenizer, example.text, _text_spans(example, options.response_template)
        )
    if options.reasoning == "strip":
        example = _strip_reasoning(example)
    if example.raw_response:
        return _plan_raw(example, tokenizer, options)
    return _plan_spans(example, tokenizer, *_chat_spans(example, tokenizer, options))


def _render(
    example: Example, tokenizer: Any, count: int, options: TemplateOptions, prompt: bool
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


def _chat_spans(
    example: Example, tokenizer: Any, options: TemplateOptions
) -> tuple[str, list[tuple[str, str]]]:
    """(rendered text, [(text before the answer, text through it)] per trained turn), each checked
    to be a prefix of the rendered text."""
    last = len(example.messages) - 1
    full = _render(example, tokenizer, last + 1, options, prompt=False)
    trained = [
        index for index, message in enumerate(example.messages) if message.role == "assistant"
    ]
    if options.reasoning in ("last-turn", "split"):
        trained = trained[-1:]
    spans = []
    for index in trained:
        before = _render(example, tokenizer, index, options, prompt=True)
        through = (
            full if index == last else _render(example, tokenizer, index + 1, options, prompt=False)
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


def _text_spans(example: Example, response_template: str | None) -> list[tuple[str, str]]:
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


def _plan_spans(example: Example, tokenizer: Any, full: str, spans: list[tuple[str, str]]) -> _Plan:
    def finish(ids: list[list[int]], special: frozenset[int]) -> TokenSample:
        whole, bounds = ids[0], ids[1:]
        mask = np.zeros(len(whole), bool)
        for part in bounds:
            if whole[: len(part)] != part:
                at = next(
                    (i for i, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b),
                    len(whole),
                )
                found = (
                    f"that the token {tokenizer.decode(whole[at : at + 1])!r} spans the boundary of"
                    " prompt and answer"
                )
                expected, fix = (
                    "the prompt's tokens to be the sample's first tokens",
                    "remove white space at the answer's start",
                )
                raise BadRow(example.where, "tokens merge at a turn boundary", expected, found, fix)
        for before, through in zip(bounds[::2], bounds[1::2], strict=True):
            mask[
                len(before) : _end_of_turn(whole, len(before), len(through), special, tokenizer)
            ] = True
        return TokenSample(example.id, np.array(whole, np.int32), mask, advantage=example.advantage)

    return _Plan([full, *(text for span in spans for text in span)], finish)


def _end_of_turn(
    ids: list[int], begin: int, end: int, special: frozenset[int], tokenizer: Any
) -> int:
    """`end` without white space that follows the turn's last control token: the model stops there
    and never has to write it."""
    last = next((index for index in range(end - 1, begin - 1, -1) if ids[index] in special), None)
    if last is not None and not tokenizer.decode(ids[last + 1 : end]).strip():
        return last + 1
    return end


def _plan_raw(example: Example, tokenizer: Any, options: TemplateOptions) -> _Plan:
    """Prompt through the template, response raw with an end-of-sequence token (Rethinking SFT,
    OurSFTDataset)."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{example.where}: raw responses need an end-of-sequence token, the tokenizer has none;"
            " fix: set eos_token in it"
        )
    prompt = _render(example, tokenizer, len(example.messages) - 1, options, prompt=True)

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


def _strip_reasoning(example: Example) -> Example:
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


def render_sample(sample: TokenSample, tokenizer: Any) -> Text:
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
