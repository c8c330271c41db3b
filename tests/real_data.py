"""Where the published problem sets lie (gsm8k, math500, aime24, amc23): `megaladder data get`.

$MEGALADDER_DATA, else `data/` of this checkout, else a `shared/data` folder beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PLACES = (_ROOT / "data", _ROOT.parent / "shared" / "data")
REAL_DATA = Path(
    os.environ.get("MEGALADDER_DATA")
    or next((place for place in _PLACES if place.is_dir()), _PLACES[0])
)
