"""What Python does in the launch scripts of this folder: VERB_NAME.sh runs configs/VERB_NAME.yaml."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
if find_spec("megaladder") is None:  # a checkout that was not installed
    sys.path.insert(0, str(HERE.parent))
    paths = filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)

from megaladder.cli import run_example  # noqa: E402


def main() -> int:
    """Runs the file that is called like the script, with its overrides; the exit status."""
    name = Path(sys.argv[0]).resolve().stem
    return run_example(name.partition("_")[0], HERE / "configs" / f"{name}.yaml", sys.argv[1:])
