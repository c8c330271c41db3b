"""GRPO of a mixture of experts through the verb, killed with kill -9: resumed at the same layout its
final files are those of a run that nobody disturbed, at another one they are near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distributed import run_ranks
from grpo_runs import GrpoRuns
from model_cases import read_all

pytestmark = pytest.mark.slow
STEPS = 4
GRPO = (
    "--rollout.engine fake --rollout.n 4 --rollout.max-tokens 40 --data.seq-length 128"
    " --grpo.preset dapo --grpo.prompts-per-step 3 --grpo.mini-batches 2 --optim.lr 1e-3"
    " --checkpoint.every 2 --reward.workers 1 --checkpoint.export-hf true"
    " --moe.aux-loss sequence"
)
EP2, TP2 = ("--parallel.ep", "2"), ("--parallel.tp", "2")
# where the run is killed: in the third step's update, with a round stored, amid a save
FAULTS = ("update:6:SIGKILL", "rollouts_stored:4:SIGKILL", "before_commit:1:SIGKILL")


class Verb:
    """`megaladder grpo` on several ranks, in sub-folders of one folder."""

    def __init__(self, folder: Path, family: str) -> None:
        made = GrpoRuns(folder, family=family)
        self.folder, self._model, self._problems = folder, made.model, made.problems
        # the bias is state of its own: a step moves it by the loads
        self._more = ("--moe.bias-update-rate", "1e-2") if family == "glm4_moe" else ()

    def __call__(self, name: str, *layout: str, ranks: int, fault: str = "") -> str:
        given = ["--run-dir", str(self.folder / name), "--model.path", str(self._model)]
        given += ["--data.path", str(self._problems), "--train.max-steps", str(STEPS)]
        words = ["grpo", *given, *GRPO.split(), *self._more, *layout]
        return run_ranks("faults/verb_worker.py", ranks, fault, *words)

    def rows(self, name: str) -> list[dict]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def record(self, name: str) -> list[tuple]:
        """What each step trained on, what came of it, and how the experts were used."""
        keys = ("step", "groups_sha256", "loss", "grad_norm", "reward", "moe_max_load_by_layer")
        return [tuple(row[key] for key in keys) for row in self.rows(name)]

    def final(self, name: str) -> Path:
        return self.folder / name / f"hf/step_{STEPS}"


@pytest.fixture(scope="module", params=["qwen3_moe", "glm4_moe"])
def verb(request, tmp_path_factory) -> Verb:
    made = Verb(tmp_path_factory.mktemp(request.param), request.param)
    made("whole", *EP2, ranks=2)
    assert len(made.rows("whole")) == STEPS
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_and_resumed_it_ends_with_the_same_files(verb: Verb, fault: str) -> None:
    name = fault.partition(":")[0]
    with pytest.raises(AssertionError, match="of 2: status -9"):
        verb(name, *EP2, ranks=2, fault=fault)
    assert len(verb.rows(name)) < STEPS
    verb(name, *EP2, ranks=2)
    assert verb.record(name) == verb.record("whole")
    found, want = verb.final(name), verb.final("whole")
    files = {path.name: path.read_bytes() for path in found.glob("*.safetensors")}
    assert files and files == {path.name: path.read_bytes() for path in want.glob("*.safetensors")}


def test_resumed_at_another_ep_it_ends_near(verb: Verb) -> None:
    with pytest.raises(AssertionError, match="of 2: status -9"):
        verb("moved", *EP2, ranks=2, fault="update:6:SIGKILL")
    said = verb("moved", *TP2, "--parallel.pp", "2", "--parallel.ep", "2", ranks=4)
    assert "resumed after step 2" in said
    for row, same in zip(verb.rows("moved"), verb.rows("whole"), strict=True):
        assert row["groups_sha256"] == same["groups_sha256"]
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-5, abs=1e-7)
        assert row["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-4)
    found, want = read_all(verb.final("moved")), read_all(verb.final("whole"))
    assert found.keys() == want.keys()
    # an update is of the size of the learning rate where a gradient's sign is all that counts
    assert max((found[name] - want[name]).abs().max() for name in want) <= 2e-4


def test_a_killed_run_follows_its_engine_as_before(tmp_path: Path, engine_server: str) -> None:
    """A real vLLM tells its experts; the stored round's choices are read again."""
    runs = GrpoRuns(tmp_path, family="qwen3_moe")
    reward = tmp_path / "reward.py"
    reward.write_text("def odd(completion, gold, **row):\n    return float(len(completion) % 2)\n")
    flags = ("--rollout.engine", "vllm", "--reward.terms", f"{reward}:odd", "--optim.lr", "3e-3")
    flags += ("--checkpoint.export-hf", "true", "--train.max-steps", "3")
    whole = runs.run("whole", *flags, engine_server=engine_server)
    assert whole.status == 0 and len(whole.rows) == 3, whole.error
    killed = runs.run(
        "killed", *flags, fault="rollouts_stored:3:SIGKILL", engine_server=engine_server
    )
    assert killed.status == -9
    done = runs.run("killed", *flags, engine_server=engine_server)
    assert done.status == 0 and done.record() == whole.record(), done.error
    assert all(row["moe_differing_choices"] == 0 for row in done.rows)
    assert "routed_experts" in (done.folder / "rollouts/step_3.jsonl").read_text()
    found, want = (read_all(one.folder / "hf/step_3") for one in (done, whole))
    assert all((found[name] == want[name]).all() for name in want)
