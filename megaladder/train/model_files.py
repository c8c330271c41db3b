"""Configuration and tokenizer files that travel with trained weights.

Those of the source model, with what training changed about them.

Which template rendered the data, with which arguments and on which day, and which tokens end an
answer: whoever loads an export, or converts a checkpoint, samples as training meant it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.checkpoints_conv.reader import auxiliary_files
from megaladder.data.chat.stops import special_token_ids, stop_token_ids
from megaladder.data.chat.tokenizer import TOKENIZER_FILES
from megaladder.data.store import SampleStore
from megaladder.errors import ModelError
from megaladder.run_dir import atomic_write, to_json
from megaladder.types import Tokenizer, TokenSample

_SAMPLES_LOOKED_AT = 256
_TEMPLATE_FILE, _TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What stands beside the weights.

    `template`: Jinja text, or texts by name; None = there is none. `stop_ids` end an answer, `end`:
    id and text of the one that training taught, where it is not the tokenizer's end-of-sequence."""

    model_folder: Path
    tokenizer_folder: Path
    template: str | dict[str, str] | None
    stop_ids: tuple[int, ...]
    end: tuple[int, str] | None = None

    def write(self, out: Path) -> None:
        """Fills the folder `out` anew. Raises ModelError for a damaged file of the source."""
        shutil.rmtree(out, ignore_errors=True)
        files = {path.name: path for path in auxiliary_files(self.model_folder)}
        if self.tokenizer_folder != self.model_folder:
            files = {name: path for name, path in files.items() if name not in TOKENIZER_FILES}
            found = [self.tokenizer_folder / name for name in TOKENIZER_FILES]
            files |= {path.name: path for path in found if path.is_file()}
        changed = self._changed(files)
        for name, path in files.items():
            if name not in changed:
                atomic_write(out / name, path.read_bytes())
        for name, text in changed.items():
            if text is not None:
                atomic_write(out / name, text)

    def _changed(self, files: dict[str, Path]) -> dict[str, str | None]:
        """Name → new text of each file that training changed; None: it is left out."""
        tokenizer, special = (
            _read(files, _TOKENIZER_CONFIG),
            _read(files, "special_tokens_map.json"),
        )
        config, generation = _read(files, "config.json"), _read(files, "generation_config.json")
        now = {
            _TOKENIZER_CONFIG: self._with_template(self._with_end(tokenizer)),
            "special_tokens_map.json": self._with_end(special),
            "config.json": self._with_end_id(config),
            "generation_config.json": self._with_stops(generation, config),
        }
        before = (tokenizer, special, config, generation)
        texts: dict[str, str | None] = {
            name: to_json(new, indent=2) + "\n"
            for (name, new), old in zip(now.items(), before, strict=True)
            if new != old
        }
        if isinstance(self.template, dict):
            texts[_TEMPLATE_FILE] = None
        elif self.template is not None and (
            _TEMPLATE_FILE in files or tokenizer.get("chat_template") != self.template
        ):
            texts[_TEMPLATE_FILE] = self.template
        return texts | ({"chat_template.json": None} if "chat_template.json" in files else {})

    def _with_template(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The template also where older programs look for it, if one stood there."""
        if isinstance(self.template, dict):
            named = [{"name": name, "template": text} for name, text in self.template.items()]
            return {**settings, "chat_template": named}
        kept = "chat_template" in settings and self.template is not None
        return {**settings, "chat_template": self.template} if kept else settings

    def _with_end(self, settings: dict[str, Any]) -> dict[str, Any]:
        if self.end is None or "eos_token" not in settings:
            return settings
        return {**settings, "eos_token": self.end[1]}

    def _with_end_id(self, config: dict[str, Any]) -> dict[str, Any]:
        return config if self.end is None else {**config, "eos_token_id": self.end[0]}

    def _with_stops(self, generation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        if not self.stop_ids:
            return generation
        given = generation or {
            key: config[key]
            for key in ("bos_token_id", "pad_token_id")
            if config.get(key) is not None
        }
        found = given.get("eos_token_id")
        known = found if isinstance(found, list) else [found]
        return given if set(known) == set(self.stop_ids) else self._stopping(given)

    def _stopping(self, generation: dict[str, Any]) -> dict[str, Any]:
        first = [self.end[0]] if self.end is not None else []
        ids = list(dict.fromkeys([*first, *self.stop_ids]))
        return {**generation, "eos_token_id": ids[0] if len(ids) == 1 else ids}


def model_files(
    model_folder: Path,
    tokenizer_folder: Path,
    tokenizer: Tokenizer,
    samples: SampleStore | Sequence[TokenSample] | None = None,
) -> ModelFiles:
    """What training with this tokenizer leaves beside the weights.

    `samples`: those that it learns from; they say which token ends an answer."""
    end = None if samples is None else _taught_end(samples, tokenizer)
    other = end is not None and end != tokenizer.eos_token_id
    return ModelFiles(
        model_folder,
        tokenizer_folder,
        tokenizer.chat_template,
        stop_token_ids(tokenizer, model_folder),
        (end, tokenizer.decode([end])) if other and end is not None else None,
    )


def _taught_end(samples: SampleStore | Sequence[TokenSample], tokenizer: Tokenizer) -> int | None:
    """The control token that most samples end with; None where it is none."""
    ends: Counter[int] = Counter()
    for index in range(min(len(samples), _SAMPLES_LOOKED_AT)):
        sample = samples[index]
        ends[int(sample.input_ids[np.flatnonzero(sample.loss_mask)[-1]])] += 1
    commonest = ends.most_common(1)[0][0] if ends else None
    return commonest if commonest in special_token_ids(tokenizer) else None


def _read(files: dict[str, Path], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        found = json.loads(files[name].read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{files[name]}: expected a JSON object, found {error}; fix: copy the file again"
        ) from error
    return found if isinstance(found, dict) else {}
