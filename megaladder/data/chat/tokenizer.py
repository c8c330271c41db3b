"""A tokenizer from a folder or the hub, with the chat template in use and a fingerprint of both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, cast

from megaladder.config.sections.shared import TEMPLATE_DATE, ModelSection
from megaladder.console import imports
from megaladder.data.chat.defaults import with_defaults
from megaladder.data.sources.hub import hub_failures, limit_patience
from megaladder.errors import ConfigError, ModelError
from megaladder.files.models import no_model
from megaladder.types import Tokenizer

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


# the library keeps four bytes for every id up to the largest, and ends the process without them
_MAX_TOKEN_ID = 1 << 24
_LONG_NUMBER = re.compile(rb":\s*\d{8}")
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tokenizer_dir(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a tokenizer.

    `name` itself, or its files of a hub id at `revision`, downloaded or cached. Raises ModelError.
    """
    path = Path(name)
    if path.is_file():
        raise ModelError(f"{name}: {no_model(path)}")
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
            " model.tokenizer"
        )
    from huggingface_hub import snapshot_download

    limit_patience()
    try:
        return Path(
            snapshot_download(str(name), revision=revision, allow_patterns=list(TOKENIZER_FILES))
        )
    except hub_failures() as error:
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
    arguments: Mapping[str, Any] | None = None,
    day: str = TEMPLATE_DATE,
) -> Tokenizer:
    """The tokenizer with the chat template that training uses.

    It is set on it, so that saving writes that template.

    `chat_template`: path of a Jinja file that replaces the tokenizer's own. Without either,
    DEFAULT_CHAT_TEMPLATE if the vocabulary has the ChatML tokens; otherwise the template stays
    None, which `text` rows do not need. `arguments` of the template and the `day` that it is told
    stand in its text (`defaults`). Raises ModelError, ConfigError.
    """
    with imports.uncollected():
        from transformers import AutoTokenizer

    folder = tokenizer_dir(name, revision)
    _refuse_large_ids(folder / "tokenizer.json")
    try:
        # what transformers declares is wider than what its tokenizers do
        tokenizer = cast(
            "Tokenizer",
            AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code),
        )
    except BaseException as error:  # for a damaged file bare Exception, or a panic of its Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{folder}: expected a loadable tokenizer, found {type(error).__name__}: {error}; fix:"
            " copy it again"
        ) from error
    longest = getattr(tokenizer, "model_max_length", 0)
    if not isinstance(longest, (int, float)):
        raise ModelError(
            f"{folder}: expected a number as model_max_length in tokenizer_config.json, found"
            f" {longest!r}; fix: copy it again"
        )
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
    _set_defaults(tokenizer, arguments or {}, _day(day))
    return tokenizer


def _refuse_large_ids(file: Path) -> None:
    """Raises ModelError where the vocabulary has an id that no vocabulary reaches."""
    raw = file.read_bytes() if file.is_file() else b""
    if not _LONG_NUMBER.search(raw):
        return
    try:
        vocabulary = json.loads(raw)["model"]["vocab"]
        ids = [found for found in vocabulary.values() if isinstance(found, int)]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # of another kind, or damaged: the library says what is wrong with it
    largest = max(ids, default=0)
    if largest > _MAX_TOKEN_ID:
        raise ModelError(
            f"{file}: expected token ids up to {_MAX_TOKEN_ID:,}, found {largest}; fix: copy it again"
        )


def tokenizer_folder(model: ModelSection, model_folder: str | Path | None = None) -> Path:
    """Where the tokenizer of a `model` section lies: its own place, else that of the model.

    A hub id of its own is taken at its newest commit: model.revision is the model's. model_folder:
    where the model lies, if that is known. Raises ModelError.
    """
    if model.tokenizer:
        return tokenizer_dir(model.tokenizer)
    return tokenizer_dir(model_folder or model.path, model.revision)


def model_tokenizer(model: ModelSection, folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a `model` section with the chat template that it asks for.

    What trains, samples and evaluates renders with this one. `folder`: where it lies, if that is
    known."""
    return load_tokenizer(
        folder or model.tokenizer or model.path,
        None if folder or model.tokenizer else model.revision,
        model.chat_template,
        model.trust_remote_code,
        model.chat_template_kwargs,
        model.template_date,
    )


def _set_defaults(tokenizer: Tokenizer, arguments: Mapping[str, Any], day: date) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {
            name: with_defaults(text, arguments, day) for name, text in template.items()
        }
    elif template is not None:
        tokenizer.chat_template = with_defaults(template, arguments, day)
    elif arguments:
        raise ConfigError(
            "model.chat_template_kwargs: expected a tokenizer with a chat template, found none; fix:"
            " model.chat_template: a Jinja file, or remove the arguments"
        )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"model.template_date: expected a day such as 2024-07-26, found {text!r} ({error}); fix:"
            " correct it"
        ) from error


def tokenizer_fingerprint(folder: str | Path, chat_template: Any = None) -> str:
    """sha256 over names and bytes of the tokenizer's files and the template in use.

    Templates among the files count; the one in use counts where it is another one.

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
    template = b"" if chat_template is None else b"template\0" + str(chat_template).encode("utf-8")
    digest.update(template)
    return digest.hexdigest()
