"""PCA shift of hidden states (Huan et al., arXiv 2507.00432).

How far mean features move in the plane of the base's main axes.

Per layer: PCA(2) is fitted on the base's features; projections are un-centred dot products with its
components; `shift` = mean pc1(updated) − mean pc1(original), `principle` = mean pc2. Distance = L2
between the centroids over layers. Signs follow scikit-learn's `svd_flip` (the largest entry of each
component is positive). K = texts, H = hidden size, L = layers + 1 (embeddings first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class LayerShift:
    """One layer.

    The original model's point is (0, `principle_original`), the updated one's (`shift`,
    `principle_updated`)."""

    shift: float
    principle_original: float
    principle_updated: float


def main_axes(features_kh: np.ndarray) -> np.ndarray:
    """The two main axes of the features, float64 [2, H]; needs two texts and two dimensions."""
    centred = features_kh - features_kh.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    return axes * np.where(largest < 0, -1.0, 1.0)[:, None]


def layer_shift(base_kh: np.ndarray, tuned_kh: np.ndarray) -> LayerShift:
    """The shift of one layer's features [K, H]."""
    axes = main_axes(base_kh)
    original, updated = base_kh.mean(axis=0) @ axes.T, tuned_kh.mean(axis=0) @ axes.T
    return LayerShift(float(updated[0] - original[0]), float(original[1]), float(updated[1]))


def pca_shift(base_lkh: np.ndarray, tuned_lkh: np.ndarray) -> dict[str, Any]:
    """The PCA shift of every layer for features float64 [L, K, H].

    `{"distance": …, "data": [{layer, state, shift, principle}, …]}`, with `data` as published."""
    layers = [layer_shift(base, tuned) for base, tuned in zip(base_lkh, tuned_lkh, strict=True)]
    original = np.array([[0.0, layer.principle_original] for layer in layers]).mean(axis=0)
    updated = np.array([[layer.shift, layer.principle_updated] for layer in layers]).mean(axis=0)
    data = []
    for number, layer in enumerate(layers):
        data.append(
            {
                "layer": number,
                "state": "Original",
                "shift": 0.0,
                "principle": layer.principle_original,
            }
        )
        data.append(
            {
                "layer": number,
                "state": "Updated",
                "shift": layer.shift,
                "principle": layer.principle_updated,
            }
        )
    return {"distance": float(np.linalg.norm(updated - original)), "data": data}
