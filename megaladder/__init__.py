"""megaladder: curate reasoning data, SFT, GRPO, evaluate, understand what changed.

On megatron-core, from a laptop to H200 nodes.

Importing this package imports no torch. `kernels/`, `tools/` and `checkpoints_conv/` live at the
repository's top level; an installed copy finds them through setup.py's mapping, a source checkout
through the extra path entry below (a top-level importable package called `kernels` would break
transformers, which imports the hub package of that name).
"""

from pathlib import Path

__version__ = "0.1.0"

_parent = Path(__file__).resolve().parent.parent
if (_parent / "setup.py").is_file() and (_parent / "checkpoints_conv").is_dir():
    __path__.append(str(_parent))
