"""The ledger of samples outside training.

`ledger.json` beside an evaluation's journal, and `OUT.ledger.json` beside a teacher's rows.

Tokens and FLOPs follow from all samples that are there, so a resumed run has the same as one in a
single start. CPU seconds of grading are added start by start; those of a start that was killed are
lost. Not counted: samples that were drawn and rejected, and a judge's own tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaladder.errors import DataError, ModelError
from megaladder.ledger.book import PHASES, Phase
from megaladder.ledger.work import Work, generation_work, total_work
from megaladder.model.hf_config import ModelShape, model_shape, read_config_json
from megaladder.run_dir import read_object, write_object


def shape_at(path: str) -> ModelShape | None:
    """The shape of the model in a folder.

    None where there is none, or one that is not known here: its FLOPs are then not counted."""
    try:
        return model_shape(read_config_json(path)) if path else None
    except ModelError:
        return None


def sampled_work(
    shape: ModelShape | None, prompt_tokens: Mapping[str, int], samples: Iterable[tuple[str, int]]
) -> Work:
    """The work of samples: (problem id, tokens of the completion) each.

    prompt_tokens: problem id → tokens of its prompt; problems without a sample cost nothing.
    """
    responses = defaultdict[str, list[int]](list)
    for problem, tokens in samples:
        responses[problem].append(tokens)
    if shape is not None:
        return total_work(
            generation_work(shape, prompt_tokens[problem], lengths)
            for problem, lengths in responses.items()
        )
    prompts = sum(prompt_tokens[problem] for problem in responses)
    return Work(prompts + sum(map(sum, responses.values())), prompts)


def write_sampled_ledger(path: Path, phase: Phase, work: Work) -> dict[str, Any]:
    """Writes the ledger file of a phase, with the grading seconds of earlier starts added.

    Returns what it holds."""
    before = read_sampled_ledger(path).get(phase, Work())
    found: dict[str, Any] = {phase: asdict(work + Work(cpu_s=before.cpu_s))}
    write_object(path, found)
    return found


def read_sampled_ledger(path: Path) -> dict[Phase, Work]:
    """What such a file holds; nothing where there is none."""
    if not path.is_file():
        return {}
    fix = "delete it, then the work of these samples is not counted"
    try:
        found = read_object(path, fix)
        return {phase: Work(**found[phase]) for phase in PHASES if phase in found}
    except TypeError as error:
        raise DataError(f"{path}: expected work by phase ({error}); fix: {fix}") from None


def teacher_ledger(out: str | Path) -> Path:
    """The ledger of the rows that `data sample` wrote to `out`."""
    return Path(f"{out}.ledger.json")
