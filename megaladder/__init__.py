"""megaladder: curate reasoning data, SFT, GRPO, evaluate, understand what changed.

On megatron-core, from a laptop to H200 nodes.

Importing this package imports no torch; the names of its Python API (`megaladder.api`) load with
their first use. `kernels/`, `tools/` and `checkpoints_conv/` live at the
repository's top level; an installed copy finds them through setup.py's mapping, a source checkout
through the extra path entry below (a top-level importable package called `kernels` would break
transformers, which imports the hub package of that name).
"""

from megaladder import startup

# before anything that takes time
startup.listen_if_command()

from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from megaladder.api import Callback, Evaluation, Run, Score, evaluate, grpo, load, report, sft

__version__ = "0.1.0"
__all__ = ["Callback", "Evaluation", "Run", "Score", "evaluate", "grpo", "load", "report", "sft"]

_parent = Path(__file__).resolve().parent.parent
if (_parent / "setup.py").is_file() and (_parent / "checkpoints_conv").is_dir():
    __path__.append(str(_parent))


def __getattr__(name: str) -> Any:
    """The API's names, imported when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'megaladder' has no attribute {name!r}")
    from megaladder import api

    return getattr(api, name)
