"""Child processes: real ones, without vLLM. Deaths, hangs and refusals; only what is unfinished is
sampled again; nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from clean_fork import run_in_fork
from waiting import is_alive, wait_until

from megaladder.errors import ConfigError, EngineError, ModelError
from megaladder.process import ranks
from megaladder.rollout.engine import SamplingParams, expand
from megaladder.rollout.process_engine import Limits, ProcessEngine
from megaladder.rollout.replica import ChildSpec, last_error

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub_child.py")
PROMPTS = [tuple(range(1, 3 + p)) for p in range(6)]
PARAMS = SamplingParams(n=4, seed=3)


def spec(folder: Path, index: int, **plan) -> ChildSpec:
    values = {
        "counter": str(folder / f"starts_{index}"),
        "log": str(folder / f"calls_{index}"),
        **plan,
    }
    environment = {"STUB_PLAN": json.dumps(values), "PYTHONPATH": str(REPOSITORY)}
    return ChildSpec((sys.executable, str(STUB)), environment, folder / f"child_{index}.log")


def engine(folder: Path, *plans: dict, **limits) -> ProcessEngine:
    return ProcessEngine(
        [spec(folder, i, **plan) for i, plan in enumerate(plans)],
        Limits(**{"stall_s": 5.0, "start_s": 30.0, **limits}),
    )


def calls(folder: Path, index: int) -> list[str]:
    path = folder / f"calls_{index}"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list:
    with engine(tmp_path_factory.mktemp("plain"), {}) as one:
        return one.generate(PROMPTS, PARAMS)


def test_two_replicas_answer_as_one(tmp_path, expected):
    with engine(tmp_path, {}, {}) as two:
        assert two.generate(PROMPTS, PARAMS) == expected
        assert two.health().ok and two.describe()["replicas"] == 2
        pids = two.pids
    shares = [
        len([line for line in calls(tmp_path, i) if line.startswith("sample")]) for i in (0, 1)
    ]
    assert shares == [12, 12]
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("fault", ["die_after", "break_after", "hang_after"])
def test_one_loss_is_healed_and_only_the_unfinished_is_sampled_again(tmp_path, expected, fault):
    with engine(tmp_path, {fault: 7}, {}, stall_s=1.0) as two:
        assert two.generate(PROMPTS, PARAMS) == expected
        assert two.restarts == 1
    # the sample that was under way, and nothing else, was drawn twice
    assert len(calls(tmp_path, 0)) == 12 + 1
    assert len(calls(tmp_path, 1)) == 12  # the healthy replica went on


GARBAGE = {
    "too long": "ffffffff00000000",
    "no length": "0000010000000100",  # nobody waits for 256 bytes
    "no JSON": "00000002fffffffd7b7b",
    "no object": "00000002fffffffd" + b"[]".hex(),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_child_that_says_what_is_no_message_is_replaced_and_named(tmp_path, expected, garbage):
    """Long before its silence would count."""
    plan = {"garble_after": 7, "garbage": garbage}
    with engine(tmp_path, plan, {}, stall_s=1000.0) as two:
        assert two.generate(PROMPTS, PARAMS) == expected
        assert two.restarts == 1
    (tmp_path / "never").mkdir()
    with engine(tmp_path / "never", plan, stall_s=1000.0, max_restarts=0) as one:
        with pytest.raises(
            EngineError, match=r"replica 0 said (what is no|a message (of 4,|that is))"
        ):
            one.generate(PROMPTS, PARAMS)


def test_a_child_that_stands_still_is_replaced_and_named(tmp_path, expected, monkeypatch):
    """The kernel says that it is stopped: nobody waits for `stall_s`."""
    monkeypatch.setattr(ranks, "STOPPED_S", 0.2)
    with engine(tmp_path, {"stop_after": 7}, {}, stall_s=1000.0) as two:
        assert two.generate(PROMPTS, PARAMS) == expected
        assert two.restarts == 1
    (tmp_path / "never").mkdir()
    with engine(tmp_path / "never", {"deaf": True}, stall_s=1000.0, max_restarts=0) as one:
        # more than its socket holds: it does not read either
        prompts = [tuple(range(100_000)) for _ in range(8)]
        with pytest.raises(EngineError, match=r"process \d+ has been stopped for 0.2 s"):
            one.generate(prompts, PARAMS)


def test_a_call_to_a_child_that_stands_still_ends_and_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "STOPPED_S", 0.2)
    with engine(tmp_path, {"deaf": True}, stall_s=1000.0) as one:
        with pytest.raises(
            EngineError, match=r"reset_prefix_cache: replica 0 process \d+ has been"
        ):
            one.forget_prompts()


@pytest.mark.parametrize("end", ["close", "kill", "trainer"])
def test_temporary_files_of_a_child_go_with_it(tmp_path, end):
    """Whether it is told to end, is killed, or its trainer is."""
    places = tmp_path / "temporary"
    places.mkdir()
    trainer = run_in_fork(_leave_a_file, tmp_path, end == "kill", end == "trainer")
    assert trainer == (-signal.SIGKILL if end == "trainer" else 0)
    wait_until(lambda: not list(places.iterdir()), "an empty folder")


def _leave_a_file(folder: Path, kill_it: bool, kill_us: bool) -> int:
    tempfile.tempdir = str(folder / "temporary")
    with engine(folder, {"leave": True}) as one:
        one.generate(PROMPTS, PARAMS)
        assert list(Path(tempfile.tempdir).glob("**/left"))
        if kill_us:
            os.kill(os.getpid(), signal.SIGKILL)
        if kill_it:
            os.kill(one.pids[0], signal.SIGKILL)
    return 0


@pytest.mark.parametrize("who", ["", "(Main) ", "(EngineCore pid=7) "])
def test_a_warning_is_not_blamed_for_an_end(tmp_path, who):
    log = tmp_path / "vllm_0.log"
    warning = f"{who}WARNING 11-29 [utils.py:597] another way is taken. Exception: no primitive"
    log.write_text(f"{warning}\nready\n")
    assert last_error(log) == "ready"
    log.write_text(f"ValueError: no such model\n{warning}\nready\n")
    assert last_error(log) == "ValueError: no such model"


def test_second_loss_ends_the_call_with_the_engines_words(tmp_path):
    with engine(tmp_path, {"break_after": 3, "faulty": 2}) as one:
        done = []
        with pytest.raises(
            EngineError, match=r"failed 2 times.*18 completions unfinished.*the device fell over"
        ) as error:
            for index, _ in one.stream(
                [request for prompt in PROMPTS for request in expand(prompt, PARAMS)]
            ):
                done.append(index)
        assert error.value.exit_status == 3
        # three before the first loss, three before the second
        assert len(done) == len(set(done)) == 6
        # the third incarnation is sound: the engine can still be used
        assert len(one.generate(PROMPTS, PARAMS)) == 6


def test_start_that_fails_says_what_the_child_said(tmp_path):
    with pytest.raises(
        EngineError, match=r"did not start.*exit status 3.*ValueError: no such model"
    ):
        engine(tmp_path, {"no_start": True})


def test_refused_prompt_is_the_users_error_and_the_rest_is_aborted(tmp_path):
    with engine(tmp_path, {"refuse_longer": 4}) as one:
        with pytest.raises(ConfigError, match="refused a prompt of 5 tokens: too long for me"):
            one.generate(PROMPTS, SamplingParams())
        # late answers of the aborted call are not mixed in
        assert len(one.generate(PROMPTS[:2], SamplingParams())) == 2


def test_abandoned_stream_does_not_disturb_the_next(tmp_path, expected):
    with engine(tmp_path, {"slow_s": 0.01}) as one:
        stream = one.stream([request for prompt in PROMPTS for request in expand(prompt, PARAMS)])
        next(stream)
        stream.close()
        assert one.generate(PROMPTS, PARAMS) == expected


def test_weights_go_to_all_and_after_a_restart_to_the_new_child_only(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"x")
    with engine(tmp_path, {"die_after": 2}, {}) as two:
        two.update_weights(str(tmp_path / "w"), 4)
        groups = two.generate(PROMPTS, PARAMS, expect_version=4)
        assert {completion.policy_version for group in groups for completion in group} == {4}
        loads = [[line for line in calls(tmp_path, i) if "load_folder" in line] for i in (0, 1)]
        assert [len(each) for each in loads] == [2, 1]
        with pytest.raises(ModelError, match=r"no \*\.safetensors"):
            two.update_weights(str(tmp_path), 5)
        with pytest.raises(EngineError, match="did not finish"):
            two.generate(PROMPTS, PARAMS)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "model.safetensors").write_bytes(b"x")
        with pytest.raises(EngineError, match="load_folder: replica 0: OSError: bad file"):
            two.update_weights(str(tmp_path / "bad"), 5)
        two.update_weights(str(tmp_path / "w"), 5)
        assert two.generate(PROMPTS, PARAMS, expect_version=5)


@pytest.mark.parametrize("by", ["SIGKILL", "SIGSTOP"])
def test_a_child_lost_in_an_update_is_replaced_once_and_named(tmp_path, monkeypatch, capfd, by):
    monkeypatch.setattr(ranks, "STOPPED_S", 0.2)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    plan = {"lost_in": "load_folder", "by": by}
    with engine(tmp_path, plan, {}, stall_s=1000.0) as two:
        two.update_weights(str(tmp_path), 4)
        assert two.restarts == 1 and len(two.generate(PROMPTS, PARAMS, expect_version=4)) == 6
    what = "killed by SIGKILL" if by == "SIGKILL" else r"process \d+ has been stopped for 0.2 s"
    assert re.search(
        rf"load_folder: replica 0 {what}.*; it is started again", capfd.readouterr().err
    )
    (tmp_path / "always").mkdir()
    with engine(tmp_path / "always", {**plan, "faulty": 2}, stall_s=1000.0) as one:
        with pytest.raises(EngineError, match=f"load_folder: replica 0 {what}"):
            one.update_weights(str(tmp_path), 4)
        with pytest.raises(EngineError, match="did not finish"):
            one.generate(PROMPTS, PARAMS)


@pytest.mark.parametrize("method", ["sleep", "wake"])
@pytest.mark.parametrize("by", ["SIGKILL", "SIGSTOP"])
def test_a_child_lost_in_a_call_is_dead_for_the_next_update(tmp_path, monkeypatch, method, by):
    """Which starts another in its place: nobody waits again for one that stands still."""
    monkeypatch.setattr(ranks, "STOPPED_S", 0.2)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with engine(tmp_path, {"lost_in": method, "by": by}, stall_s=1000.0) as one:
        with pytest.raises(EngineError, match=f"{method}: replica 0 "):
            getattr(one, method)()
        assert one.dead_replicas == [0]
        one.update_weights(str(tmp_path), 1)
        assert len(one.generate(PROMPTS, PARAMS, expect_version=1)) == 6 and one.restarts == 1


def test_death_between_calls_is_healed_by_the_next(tmp_path, expected):
    with engine(tmp_path, {}, {}) as two:
        os.kill(two.pids[1], signal.SIGKILL)
        wait_until(lambda: not two.health().ok, "news of the death")
        assert "killed by SIGKILL" in two.health().detail
        assert two.generate(PROMPTS, PARAMS) == expected
        assert two.restarts == 1


def test_children_die_with_a_killed_parent(tmp_path):
    """One of them stands still: it could not notice by itself."""
    code = (
        "import sys, time; sys.path[:0] = sys.argv[1].split(':')\nfrom pathlib import Path\nimport"
        " test_process_engine as t\ne = t.engine(Path(sys.argv[2]), {}, {}); print(*e.pids,"
        " flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, f"{STUB.parent}:{STUB.parents[1]}", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "end of the children")
