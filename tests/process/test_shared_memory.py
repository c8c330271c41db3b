"""What a killed run leaves in shared memory is found and removed; what lives is left alone."""

import os
import signal

import pytest
from clean_fork import run_in_fork

from megaladder.files import shared_memory
from megaladder.preflight.doctor import DoctorConfig, run_doctor
from megaladder.run_dir import RunDir


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "ROOT", tmp_path / "shm")
    shared_memory.ROOT.mkdir()
    return shared_memory.ROOT


def leave_behind(root) -> None:
    """A run that is killed with a model in shared memory."""

    def run() -> None:
        shared_memory.ROOT = root
        folder = shared_memory.take("killed")
        (folder.path / "model.safetensors").write_bytes(b"x" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_fork(run) == -signal.SIGKILL
    assert (root / "megaladder-killed" / "model.safetensors").exists()


def test_leftovers_go_and_what_lives_stays(root):
    leave_behind(root)
    living = shared_memory.take("living")
    (living.path / "model.safetensors").write_bytes(b"y" * 10)
    (root / "megaladder-of-somebody-else").mkdir()  # no lock: none of ours
    (root / "megaladder-link").symlink_to(living.path)
    (root / "megaladder-link.lock").symlink_to(root / "megaladder-living.lock")
    assert shared_memory.sweep() == [("megaladder-killed", 1000)]
    assert shared_memory.sweep() == []
    assert shared_memory.in_use() == [("megaladder-living", 10)]
    assert shared_memory.take("living") is None
    living.close()
    living.close()
    left = {path.name for path in root.iterdir()}
    assert left == {"megaladder-of-somebody-else", "megaladder-link", "megaladder-link.lock"}


def test_the_next_start_of_any_run_removes_them(root, tmp_path):
    leave_behind(root)
    RunDir(tmp_path / "another", writer=True).close()
    assert list(root.iterdir()) == []


def test_doctor_removes_them_and_says_so(root, capsys):
    leave_behind(root)
    run_doctor(DoctorConfig())
    assert "megaladder-killed of a killed run removed" in capsys.readouterr().out
    assert list(root.iterdir()) == []
    run_doctor(DoctorConfig())
    assert "shared memory: nothing of ours" in capsys.readouterr().out
