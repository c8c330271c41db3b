"""What libraries say at every start and nobody can act on here."""

from __future__ import annotations

import warnings

# missing GPU packages (`megaladder doctor` lists them), deprecations
PATTERNS = (
    "Transformer Engine and Apex",
    "full scope is deprecated",
    "When using sequence parallelism",
    "The .grad attribute of a",
    ".* is deprecated. Please use",
    "Apex is not installed",
    "overwriting old incomplete",
)


def silence_expected_warnings() -> None:
    """Call before megatron-core is imported, which warns while it is."""
    for pattern in PATTERNS:
        warnings.filterwarnings("ignore", message=pattern)
