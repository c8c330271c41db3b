"""What is scored: prompts and answers, from a file or from the evaluation of a run's export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaladder.analysis.runs.read import read_runs
from megaladder.analysis.runs.record import RunRecord, Runs
from megaladder.analysis.samples.rows import response_ids, response_texts, sample_rows
from megaladder.analysis.shift.score import ModelPair
from megaladder.analysis.tables import Warnings
from megaladder.config.verbs.analysis import ShiftConfig
from megaladder.data.chat.rendering import render
from megaladder.errors import DataError


@dataclass(frozen=True, slots=True)
class TextRow:
    """A prompt and an answer.

    `output_ids` are used as they are when the row has them. `rendered`: the prompt is what a
    template made, with its special tokens."""

    where: str
    input: str
    output: str
    output_ids: list[int] | None = None
    rendered: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of the two models, and the file of rows."""

    base: str
    tuned: str
    data: str


def find_places(config: ShiftConfig, warnings: Warnings) -> Places:
    """What was given, and for the rest what the run recorded.

    Raises:
        DataError: the run has no export, its first model is gone, or nobody evaluated the export.
    """
    if config.base and config.tuned and config.data:
        return Places(config.base, config.tuned, config.data)
    runs = read_runs(config.runs, warnings)
    record = _one_run(runs, config)
    tuned = config.tuned or _last_export(record)
    return Places(
        config.base or _begun(record), tuned, config.data or _samples(runs, record, tuned)
    )


def _one_run(runs: Runs, config: ShiftConfig) -> RunRecord:
    """The run that was named, else the only one."""
    first = str(Path(config.runs[0]).resolve())
    trained = [record for record in runs if record.is_run]
    named = [record for record in trained if str(Path(record.path).resolve()) == first]
    if len(named or trained) != 1:
        raise DataError(
            f"{', '.join(config.runs)}: {len(trained)} runs"
            f" ({', '.join(record.name for record in trained)}); fix: give one run folder first"
        )
    return (named or trained)[0]


def _last_export(record: RunRecord) -> str:
    exports = [path for path in Path(record.path).glob("hf/step_*") if path.is_dir()]
    if not exports:
        raise DataError(
            f"{record.path}: no export in hf/; fix: megaladder convert megatron-to-hf --megatron"
            f" {record.path}/checkpoints/step_N --out {record.path}/hf/step_N, or --tuned DIR"
        )
    return str(max(exports, key=lambda path: int(path.name.removeprefix("step_"))))


def _begun(record: RunRecord) -> str:
    recorded = (record.identity.get("model") or {}).get("path")
    typed = (record.config.get("model") or {}).get("path")
    found = next((path for path in (recorded, typed) if path and Path(path).is_dir()), None)
    if found is None:
        raise DataError(
            f"{record.path}: began with {recorded or typed}, which is no folder here; fix: --base DIR"
        )
    return str(found)


def _samples(runs: Runs, record: RunRecord, tuned: str) -> str:
    step = Path(tuned).name.removeprefix("step_")
    files = [str(s.samples) for s in record.scores if s.samples and str(s.step) == step]
    if not files:
        raise DataError(
            f"{record.name}: no evaluation of step {step}, whose answers would be scored; fix:"
            f" megaladder eval --model.path {tuned} --benchmark NAME --out DIR and give DIR too, or"
            " --data FILE"
        )
    if len(files) > 1:
        runs.warnings.add(f"{record.name} step {step}: several evaluations, {files[0]} is used")
    return files[0]


def read_rows(path: str, max_rows: int) -> list[TextRow]:
    """The first rows {input, output[, output_ids]}, or samples of an evaluation.

    Of an evaluation the first samples of its first problems."""
    rows = []
    for where, row in sample_rows(path):
        rows.append(_text_row(where, row))
        if len(rows) == max_rows:
            break
    return rows


def _text_row(where: str, row: dict[str, Any]) -> TextRow:
    if isinstance(row.get("input"), str) and isinstance(row.get("output"), str):
        ids = row.get("output_ids", row.get("response_ids"))
        if ids is not None and not _are_ids(ids):
            raise DataError(f"{where}: 'output_ids' must be a list of token ids; fix: the row")
        return TextRow(where, row["input"], row["output"], ids)
    prompt = ((row.get("arguments") or {}).get("gen_args_0") or {}).get("arg_0")
    texts, ids = response_texts(row), response_ids(row, where)
    if not isinstance(prompt, str) or not texts:
        raise DataError(
            f"{where}: expected strings 'input' and 'output', or a sample of an evaluation with its"
            f" prompt; found {', '.join(list(row)[:8])}; fix: the row"
        )
    return TextRow(where, prompt, texts[0], ids[0] if ids else None, rendered=True)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def tokenize(
    pair: ModelPair, row: TextRow, config: ShiftConfig
) -> tuple[list[int], list[int], bool]:
    """Prompt ids, output ids, and whether the output was cut at `max_length`.

    Prompt and output are tokenised apart, as in generation."""
    prompt = _prompt_ids(pair, row, config)
    output = (
        row.output_ids
        if row.output_ids is not None
        else list(pair.tokenizer(row.output, add_special_tokens=False)["input_ids"])
    )
    if output and max(output) >= pair.vocab_size:
        raise DataError(
            f"{row.where}: token id {max(output)} is beyond the vocabulary of {pair.vocab_size};"
            " fix: ids of this model family"
        )
    kept = max(0, config.max_length - len(prompt))
    return prompt, output[:kept], kept < len(output)


def _prompt_ids(pair: ModelPair, row: TextRow, config: ShiftConfig) -> list[int]:
    tokenizer = pair.tokenizer
    if config.chat_template and not row.rendered:
        messages = [{"role": "user", "content": row.input}]
        text = render(tokenizer, messages, add_generation_prompt=True)
        prompt = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        prompt = list(tokenizer(row.input, add_special_tokens=not row.rendered)["input_ids"])
    if prompt:
        return prompt
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((token for token in starts if token is not None), None)
    if start is None:
        raise DataError(
            f"{row.where}: 'input' has no tokens and the tokenizer no start token; fix: a prompt"
        )
    return [start]
