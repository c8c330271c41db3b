"""The verb `analyze shift`.

KL, token rank shift and PCA shift of a tuned model against its base, and the token view for the
report.

kl = |mean over rows of the mean over output tokens of (log p_tuned − log p_base)|: the published
Monte-Carlo estimate of KL(tuned ‖ base), right when `output` is the tuned model's own sample.
kl_exact sums over the vocabulary at each position and needs no such assumption. Rank shift of a
token = its rank under the base − 1; shifted = rank > 1. The published code drops each row's first
output token; we do not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.shift.pca import pca_shift
from megaladder.analysis.shift.rows import TextRow, find_places, read_rows, tokenize
from megaladder.analysis.shift.score import (
    ModelPair,
    RowScores,
    load_pair,
    mean_features,
    score_rows,
)
from megaladder.analysis.tables import Warnings, write_result
from megaladder.config.verbs.analysis import ShiftConfig
from megaladder.errors import ConfigError, DataError, MissingDependencyError
from megaladder.run_dir import atomic_write, to_json


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
    """`distance` as published (with padding), and both variants in full; null below two texts.

    Every rank calls it with all rows, and takes its share of them."""
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
    padded = _features(pair, ids, max(map(len, ids)))
    with_padding, alone = pca_shift(*padded), pca_shift(*_features(pair, ids, 0))
    return {
        "distance": with_padding["distance"],
        "with_padding": with_padding,
        "without_padding": alone,
        "num_texts": len(ids),
    }


def _features(pair: ModelPair, ids: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """`mean_features` of all texts, each rank its share."""
    from megaladder import parallel

    mine = share(len(ids))
    found = mean_features(pair, [ids[i] for i in mine], length) if mine else None
    parts = [part for part in parallel.all_gather((mine, found)) if part[1] is not None]
    order = np.argsort([i for indices, _ in parts for i in indices])
    base, tuned = (
        np.concatenate([features[which] for _, features in parts], axis=1)[:, order]
        for which in (0, 1)
    )
    return base, tuned


def share(num_rows: int) -> list[int]:
    """The rows of this rank: every world-size-th."""
    from megaladder import parallel

    return list(range(parallel.rank(), num_rows, parallel.world_size()))


def token_view(pair: ModelPair, row: TextRow, scores: RowScores) -> dict[str, Any]:
    """One row of the token file.

    Each output token with its rank and log-probabilities, and what the base would have said."""
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


@dataclass(frozen=True)
class Scored:
    """All rows with output tokens, in the file's order; how many were cut, or had none."""

    rows: list[TextRow]
    scores: list[RowScores]
    num_cut: int
    num_empty: int


def score_all(pair: ModelPair, rows: list[TextRow], config: ShiftConfig) -> Scored:
    """Scores the rows, each rank its share; every rank gets all of them."""
    from megaladder import parallel

    split = [tokenize(pair, row, config) for row in rows]
    kept = [i for i, (_, output, _) in enumerate(split) if output]
    mine = [kept[i] for i in share(len(kept))]
    scores = score_rows(
        pair,
        [split[i][0] for i in mine],
        [split[i][1] for i in mine],
        config.batch_tokens,
        config.chunk_tokens,
    )
    parts = parallel.all_gather(dict(zip(mine, scores, strict=True)))
    by_row = {i: found for part in parts for i, found in part.items()}
    return Scored(
        [rows[i] for i in kept],
        [by_row[i] for i in kept],
        sum(was_cut for _, _, was_cut in split),
        len(rows) - len(kept),
    )


def run_shift(config: ShiftConfig) -> None:
    """The verb `analyze shift`; under torchrun the ranks share the rows, and the first one writes."""
    try:
        import torch  # noqa: F401  (what follows needs it)
    except ImportError as error:
        raise MissingDependencyError(
            f"analyze shift needs torch and transformers ({error}); fix: pip install torch"
            " transformers"
        ) from None
    from megaladder import parallel

    if parallel.world_size_from_env() == 1:
        _run(config)
        return
    if config.device == "spread":
        raise ConfigError("device spread takes one rank; fix: start without torchrun")
    with parallel.session(parallel.Layout()):
        _run(config)


def _run(config: ShiftConfig) -> None:
    from megaladder import parallel

    warnings = Warnings(parallel.is_main())
    places = find_places(config, warnings)
    rows = read_rows(places.data, config.max_rows)
    pair = load_pair(places.base, places.tuned, config.device, config.dtype)
    scored = score_all(pair, rows, config)
    if not scored.rows:
        raise DataError(
            f"{places.data}: no row has output tokens within --max-length {config.max_length}; fix:"
            " the rows, or a larger length"
        )
    if scored.num_cut or scored.num_empty:
        warnings.add(
            f"{scored.num_cut} rows cut at {config.max_length} tokens, {scored.num_empty} rows"
            " without output tokens left out"
        )
    out = {
        **summarise(scored.scores, warnings),
        "pca_shift": pca_section(pair, scored.rows, config, warnings),
        "base": places.base,
        "tuned": places.tuned,
        "data": places.data,
        "device": pair.place,
        "num_ranks": parallel.world_size(),
    }
    out["warnings"] = warnings.list()
    if parallel.is_main():
        _write(config, pair, scored, out)


def _write(config: ShiftConfig, pair: ModelPair, scored: Scored, out: dict[str, Any]) -> None:
    # as the report finds it, wherever both are moved together
    folder = Path(config.json_path or ".").parent
    out["tokens"] = os.path.relpath(config.tokens, folder) if config.tokens else None
    write_result(config.json_path, out)
    if config.tokens:
        pairs = zip(scored.rows, scored.scores, strict=True)
        views = (to_json(token_view(pair, row, scores)) + "\n" for row, scores in pairs)
        atomic_write(config.tokens, "".join(views))
    print(
        f"KL {out['kl']:.4g} nats/token (exact {out['kl_exact']:.4g}), mean rank shift"
        f" {out['mean_rank_shift']:.3g}, shifted {out['num_shifted']:,} of {out['num_tokens']:,}"
        f" tokens ({out['shifted_fraction']:.1%}) in {out['num_rows']} rows; {out['tuned']} against"
        f" {out['base']} on {out['device']}"
    )
    if out["pca_shift"]["distance"] is not None:
        alone = out["pca_shift"]["without_padding"]["distance"]
        print(
            f"PCA distance {out['pca_shift']['distance']:.4g} with padding (as published),"
            f" {alone:.4g} without"
        )
