"""The experts that an engine chose, as they travel with a completion and lie in a run's record.

As text: an array in numpy's file format, in base64, which is how vLLM's server gives them. No torch.

uint8 (uint16 beyond 256 experts) [prompt + answer − 1, layers, K]: the last token of an answer is
sampled and computed no further. Layers without experts have zeros.
"""

from __future__ import annotations

import base64
import io

import numpy as np


def to_text(choices: np.ndarray) -> str:
    """The text of an array."""
    file = io.BytesIO()
    np.save(file, choices, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def from_text(text: str) -> np.ndarray:
    """The array of a text.

    Raises:
        ValueError: it is none of three dimensions, or of another type.
    """
    raw = base64.b64decode(text, validate=True)
    file = io.BytesIO(raw)
    np.lib.format.read_magic(file)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or by_columns or dtype.str not in ("|u1", "<u2"):
        raise ValueError(f"an array of {dtype.str} {list(shape)}, expected bytes of 3 dimensions")
    # of the bytes that are there: a header that says more reserves nothing
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape)
