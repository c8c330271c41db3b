"""`python -m megaladder …` is `megaladder …`."""

from __future__ import annotations

import sys

from megaladder.cli import main

if __name__ == "__main__":
    sys.exit(main())
