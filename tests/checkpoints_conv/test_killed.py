"""A conversion that is killed, and the one after it."""

import os
import signal
from pathlib import Path

from clean_fork import run_in_fork
from tiny_models import build_tiny_model

from megaladder.checkpoint import store
from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron


def test_what_a_killed_conversion_left_is_no_part_of_the_next(tmp_path):
    """Killed when the marker gets its name: its temporary file is no file that is to stay."""
    model, out = tmp_path / "model", tmp_path / "megatron"

    def convert(kill: bool) -> None:
        if not model.exists():
            build_tiny_model(model)
        real = os.replace

        def replace(old: Path, new: Path) -> None:
            if kill and Path(new).name == store.MARKER:
                os.kill(os.getpid(), signal.SIGKILL)
            real(old, new)

        os.replace = replace
        convert_to_megatron(model, out, force=True)

    assert run_in_fork(convert, True) == -signal.SIGKILL
    left = [path.name for path in out.iterdir() if path.suffix == ".tmp"]
    assert len(left) == 1 and store.MARKER in left[0]
    assert run_in_fork(convert, False) == 0
    store.verify(out)
    assert not list(out.rglob("*.tmp"))
