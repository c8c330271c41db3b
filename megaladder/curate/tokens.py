"""Token counts of many texts with the `tokenizers` library alone (all cores, no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from megaladder.errors import ConfigError

BATCH_TEXTS = 256


def count_tokens(texts: Iterable[str], tokenizer: str | None, needed_by: str) -> Iterator[int]:
    """Tokens of each text without special tokens, in order.

    `tokenizer`: a folder with tokenizer.json, or that file."""
    from tokenizers import Tokenizer

    if tokenizer is None:
        raise ConfigError(
            f"{needed_by} counts tokens and has no tokenizer; fix: tokenizer: FOLDER with"
            " tokenizer.json"
        )
    path = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
    if not path.is_file():
        raise ConfigError(f"{needed_by}: {path}: no such file; fix: a folder with tokenizer.json")
    encoder = Tokenizer.from_file(str(path))
    encoder.no_truncation()
    encoder.no_padding()
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        for encoding in encoder.encode_batch(batch, add_special_tokens=False):
            yield len(encoding.ids)
