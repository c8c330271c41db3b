"""`analyze shift`: KL, token rank shift and PCA shift of a tuned model against its base, and the
token view for the report.

kl = |mean over rows of the mean over output tokens of (log p_tuned − log p_base)|: the published
Monte-Carlo estimate of KL(tuned ‖ base), right when `output` is the tuned model's own sample.
kl_exact sums over the vocabulary at each position and needs no such assumption. Rank shift of a
token = its rank under the base − 1; shifted = rank > 1. The published code drops each row's first
output token; we do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megaladder.analysis.shift.pca import pca_shift
from megaladder.analysis.shift.score import (
    ModelPair,
    RowScores,
    load_pair,
    mean_features,
    score_row,
)
from megaladder.analysis.tables import Warnings, read_json_lines, write_result
from megaladder.config.verbs.analysis import ShiftConfig
from megaladder.errors import DataError
from megaladder.run_dir import atomic_write, to_json


@dataclass(frozen=True, slots=True)
class TextRow:
    """A prompt and an answer. `output_ids` are used as they are when the row has them."""

    where: str
    input: str
    output: str
    output_ids: list[int] | None = None


def read_rows(path: str, max_rows: int) -> list[TextRow]:
    """The first rows {input, output[, output_ids]}."""
    rows = []
    for where, row in read_json_lines(path):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
            raise DataError(
                f"{where}: expected strings 'input' and 'output', found {', '.join(list(row)[:8])};"
                " fix: the row"
            )
        ids = row.get("output_ids", row.get("response_ids"))
        if ids is not None and not (
            isinstance(ids, list)
            and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
        ):
            raise DataError(f"{where}: 'output_ids' must be a list of token ids; fix: the row")
        rows.append(TextRow(where, row["input"], row["output"], ids))
        if len(rows) == max_rows:
            break
    return rows


def tokenize(
    pair: ModelPair, row: TextRow, config: ShiftConfig
) -> tuple[list[int], list[int], bool]:
    """Prompt ids, output ids, and whether the output was cut at `max_length`. Prompt and output are
    tokenised apart, as in generation."""
    if config.chat_template:
        messages = [{"role": "user", "content": row.input}]
        prompt = list(
            pair.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
    else:
        prompt = list(pair.tokenizer(row.input)["input_ids"])
    if not prompt:
        start = next(
            (
                t
                for t in (pair.tokenizer.bos_token_id, pair.tokenizer.eos_token_id)
                if t is not None
            ),
            None,
        )
        if start is None:
            raise DataError(
                f"{row.where}: 'input' has no tokens and the tokenizer no start token; fix: a"
                " prompt"
            )
        prompt = [start]
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


def summarise(scores: list[RowScores], warnings: Warnings) -> dict[str, Any]:
    """The numbers of the JSON but the PCA shift."""
    estimate = float(np.mean([(row.logprob_tuned_n - row.logprob_base_n).mean() for row in scores]))
    shifts = np.concatenate([row.rank_shift_n for row in scores])
    changes = np.concatenate([row.rank_base_n - row.rank_tuned_n for row in scores])
    if estimate < 0:
        warnings.add(
            "the outputs are likelier under the base than under the tuned model: not its own"
            " samples, so use kl_exact, not kl"
        )
    return {
        "kl": abs(estimate),
        "kl_signed": estimate,
        "kl_exact": float(np.mean([row.kl_n.mean() for row in scores])),
        "mean_rank_shift": float(shifts.mean()),
        "mean_rank_change": float(changes.mean()),
        "shifted_fraction": float((shifts > 0).mean()),
        "num_shifted": int((shifts > 0).sum()),
        "num_tokens": len(shifts),
        "num_rows": len(scores),
    }


def pca_section(
    pair: ModelPair, rows: list[TextRow], config: ShiftConfig, warnings: Warnings
) -> dict[str, Any]:
    """`distance` as published (with padding), and both variants in full; null below two texts."""
    texts = ["  ".join((row.input, row.output)) for row in rows[: config.pca_texts]]
    ids = [
        list(pair.tokenizer(text, truncation=True, max_length=config.pca_max_length)["input_ids"])
        for text in texts
    ]
    ids = [item for item in ids if item]
    if len(ids) < 2:
        if config.pca_texts:
            warnings.add(f"pca_shift is null: it needs two texts, has {len(ids)}")
        return {
            "distance": None,
            "with_padding": None,
            "without_padding": None,
            "num_texts": len(ids),
        }
    padded = pca_shift(*mean_features(pair, ids, padded=True))
    return {
        "distance": padded["distance"],
        "with_padding": padded,
        "without_padding": pca_shift(*mean_features(pair, ids, padded=False)),
        "num_texts": len(ids),
    }


def token_view(pair: ModelPair, row: TextRow, scores: RowScores) -> dict[str, Any]:
    """One row of the token file: each output token with its rank and log-probabilities, and what
    the base would have said."""
    decode = pair.tokenizer.decode
    columns = zip(
        scores.token_ids_n,
        scores.rank_shift_n,
        scores.greedy_base_n,
        scores.logprob_base_n,
        scores.logprob_tuned_n,
        scores.kl_n,
        strict=True,
    )
    tokens = [
        {
            "token": decode([int(token)]),
            "id": int(token),
            "rank": int(shift) + 1,
            "logprob_base": base,
            "logprob_tuned": tuned,
            "kl": kl,
        }
        | ({"base_says": decode([int(greedy)])} if shift else {})
        for token, shift, greedy, base, tuned, kl in columns
    ]
    return {"where": row.where, "input": row.input, "tokens": tokens}


def run_shift(config: ShiftConfig) -> None:
    """The verb `analyze shift`."""
    warnings = Warnings()
    rows = read_rows(config.data, config.max_rows)
    pair = load_pair(config.base, config.tuned, config.dtype)
    scores, views, used = [], [], []
    cut = empty = 0
    for row in rows:
        prompt, output, was_cut = tokenize(pair, row, config)
        cut += was_cut
        if not output:
            empty += 1
            continue
        scores.append(score_row(pair, prompt, output, config.chunk_tokens))
        used.append(row)
        if config.tokens:
            views.append(token_view(pair, row, scores[-1]))
    if not scores:
        raise DataError(
            f"{config.data}: no row has output tokens within --max-length {config.max_length}; fix:"
            " the rows, or a larger length"
        )
    if cut or empty:
        warnings.add(
            f"{cut} rows cut at {config.max_length} tokens, {empty} rows without output tokens"
            " left out"
        )
    out = {
        **summarise(scores, warnings),
        "pca_shift": pca_section(pair, used, config, warnings),
        "base": config.base,
        "tuned": config.tuned,
    }
    out["warnings"] = warnings.list()
    write_result(config.json_path, out)
    if config.tokens:
        atomic_write(config.tokens, "".join(to_json(view) + "\n" for view in views))
    print(
        f"KL {out['kl']:.4g} nats/token (exact {out['kl_exact']:.4g}), mean rank shift"
        f" {out['mean_rank_shift']:.3g}, shifted {out['num_shifted']:,} of {out['num_tokens']:,}"
        f" tokens ({out['shifted_fraction']:.1%}) in {out['num_rows']} rows"
    )
    if out["pca_shift"]["distance"] is not None:
        alone = out["pca_shift"]["without_padding"]["distance"]
        print(
            f"PCA distance {out['pca_shift']['distance']:.4g} with padding (as published),"
            f" {alone:.4g} without"
        )
