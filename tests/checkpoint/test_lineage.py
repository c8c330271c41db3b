"""A rewound run has lines: nothing of an older one is taken for newest, and nothing is lost."""

from __future__ import annotations

import json
import shutil

import pytest

from megaladder.checkpoint import lineage, store
from megaladder.errors import CheckpointError
from megaladder.run_dir import read_jsonl


def make_run(folder, steps=10):
    """Checkpoints, exports, rollouts and rows of every step from 1 on."""
    for step in range(1, steps + 1):
        checkpoint = folder / f"checkpoints/step_{step}"
        checkpoint.mkdir(parents=True)
        store.write_json(checkpoint / store.MARKER, {})
        (folder / f"hf/step_{step}").mkdir(parents=True)
        (folder / "rollouts").mkdir(exist_ok=True)
        for ending in ("jsonl", "summary.json"):
            (folder / f"rollouts/step_{step}.{ending}").write_text("{}\n")
    rows = [json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def numbers(folder):
    return sorted(int(path.name.split(".")[0][5:]) for path in folder.iterdir())


def test_a_new_line_sets_aside_what_is_newer_and_keeps_all_of_it(tmp_path):
    run = make_run(tmp_path)
    line = lineage.begin_line(run, run / "checkpoints/step_4", 4).current
    assert (line.name, line.fork, line.settled) == ("line_2", 4, True)
    aside = run / "set_aside/line_1"
    for folder in ("checkpoints", "hf"):
        assert numbers(run / folder) == [1, 2, 3, 4]
        assert numbers(aside / folder) == [5, 6, 7, 8, 9, 10]
    assert numbers(run / "rollouts") == sorted([1, 2, 3, 4] * 2)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [row["step"] for row in read_jsonl(aside / "metrics.jsonl")] == [5, 6, 7, 8, 9, 10]


def test_a_line_from_another_run_keeps_no_step_of_this_one(tmp_path):
    run, other = make_run(tmp_path / "a", 3), make_run(tmp_path / "b", 9)
    line = lineage.begin_line(run, other / "checkpoints/step_2", 2).current
    assert line.fork == lineage.NOTHING and store.committed_steps(run / "checkpoints") == []
    assert numbers(run / "set_aside/line_1/checkpoints") == [1, 2, 3]
    assert numbers(other / "checkpoints") == list(range(1, 10))


@pytest.mark.parametrize("moves", range(9))
def test_a_kill_between_two_moves_is_finished_by_the_next_start(tmp_path, monkeypatch, moves):
    """After any number of moves the next start reaches the state of an undisturbed rewind."""
    whole, killed = make_run(tmp_path / "whole", 6), make_run(tmp_path / "killed", 6)
    lineage.begin_line(whole, whole / "checkpoints/step_4", 4)
    replace, count = lineage.os.replace, iter(range(100))

    def replace_until_killed(source, target):
        if next(count) > moves:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(lineage.os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        lineage.begin_line(killed, killed / "checkpoints/step_4", 4)
    monkeypatch.undo()
    lineage.settle(killed)
    found, expected = (
        sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (killed, whole)
    )
    if (killed / lineage.FILE).exists():
        assert found == expected
    assert [row["step"] for row in read_jsonl(killed / "metrics.jsonl")] in (
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6],
    )


def test_damaged_record_of_lines_is_named(tmp_path):
    (tmp_path / lineage.FILE).write_text('{"lines": [{"nam')
    with pytest.raises(CheckpointError, match=r"lineage\.json.*fix:"):
        lineage.read_lineage(tmp_path)


@pytest.mark.parametrize("kind", ["link to a folder", "link to a checkpoint", "file"])
def test_what_only_looks_like_a_checkpoint_is_named_and_left_alone(tmp_path, kind):
    root, other = make_run(tmp_path / "run", 2) / "checkpoints", tmp_path / "precious"
    other.mkdir()
    (other / "data").write_text("x")
    if kind == "link to a checkpoint":
        store.write_json(other / store.MARKER, {})
    stranger = root / "step_9"
    if kind == "file":
        stranger.write_text("notes")
    else:
        stranger.symlink_to(other)
    assert store.committed_steps(root) == [1, 2]
    assert store.remove_uncommitted(root) == []
    (named,) = store.strangers(root)
    assert str(stranger) in named and (other / "data").read_text() == "x"
    with pytest.raises(CheckpointError, match="in the way"):
        store.prepare_folder(stranger, 10)
    shutil.rmtree(tmp_path / "run")  # a link is removed as a link
    assert (other / "data").exists()
