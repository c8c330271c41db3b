"""A tokenizer from a folder or the hub, with the chat template in use and a fingerprint of both."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import cast

from megaladder.errors import ModelError
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


_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


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
) -> Tokenizer:
    """The tokenizer with the chat template that training uses set on it (so that saving it writes
    that template).

    `chat_template`: path of a Jinja file that replaces the tokenizer's own. Without either,
    DEFAULT_CHAT_TEMPLATE if the vocabulary has the ChatML tokens; otherwise the template stays
    None, which `text` rows do not need. Raises ModelError.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_dir(name, revision)
    try:
        # what transformers declares is wider than what its tokenizers do
        tokenizer = cast(
            "Tokenizer",
            AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code),
        )
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
