"""Shift results as the published code writes them, in the form of `analyze shift`.

The code of Transferability (arXiv 2507.00432).

Three files: `*_pca_shift.json` (a list of {benchmark, data}), `*_token_losses.json` (ranks of each
output token under one model), and the KL file (one number a model and task).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.analysis.tables import read_text
from megaladder.errors import DataError

NO_PCA: dict[str, Any] = {"distance": None, "with_padding": None, "without_padding": None}


def published_shift(path: Path) -> dict[str, Any]:
    """The file's numbers by the keys of `analyze shift`; {} for a file of another kind.

    Raises:
        DataError: a file of one of the three kinds that lacks what its kind has.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}  # whoever reads it as ours says what is wrong
    try:
        if isinstance(value, list):
            return _pca(value) if _is_pca(value) else {}
        if isinstance(value, dict) and "kl_divergence" in value and "tested_model" in value:
            return _kl(value)
        if isinstance(value, dict) and "average_perplexity" in value and "results" in value:
            return _ranks(value)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: looks like a published shift file, but {error} is missing or of another kind;"
            " fix: write it again, or move it away"
        ) from None
    return {}


def _is_pca(value: Sequence[Any]) -> bool:
    return bool(value) and all(
        isinstance(e, dict) and {"benchmark", "data"} <= e.keys() for e in value
    )


def _pca(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first benchmark's shift; the features were padded, as published."""
    data = entries[0]["data"]
    means = {
        state: np.mean(
            [[float(p["shift"]), float(p["principle"])] for p in data if p["state"] == state],
            axis=0,
        )
        for state in ("Original", "Updated")
    }
    distance = float(np.linalg.norm(means["Updated"] - means["Original"]))
    found = {"distance": distance, "data": data}
    return {
        "mean_rank_shift": None,
        "pca_shift": {**NO_PCA, "distance": distance, "with_padding": found},
        "tuned": str(entries[0]["benchmark"]),
    }


def _kl(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "kl": float(value["kl_divergence"]),
        "mean_rank_shift": None,
        "num_rows": int(value["num_data_points"]),
        "num_tokens": int(value["total_tokens"]),
        "pca_shift": NO_PCA,
        "base": str(value["tested_model"]),
        "tuned": f"{value['generation_model']} on {value['task']}",
    }


def _ranks(value: dict[str, Any]) -> dict[str, Any]:
    """Rank shift of a token = rank − 1."""
    ranks = [int(t["rank"]) for row in value["results"] for t in row["token_losses"]]
    shifts = np.array(ranks) - 1
    return {
        "mean_rank_shift": float(shifts.mean()),
        "shifted_fraction": float((shifts > 0).mean()),
        "num_shifted": int((shifts > 0).sum()),
        "num_tokens": len(ranks),
        "num_rows": len(value["results"]),
        "pca_shift": NO_PCA,
        "base": str(value["model"]),
        "tuned": str(value["dataset"]),
    }
