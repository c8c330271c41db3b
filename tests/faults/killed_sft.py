"""Starts SFT runs that are killed at chosen or random moments. Imports are paid once: every run is a fork of this process.

    python killed_sft.py MODEL DATA FOLDER TRIALS    prints one JSON object a trial; not a test itself, test_kill_resume.py runs it.
"""
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

STEPS = 12
FAULT_POINTS = ("update", "before_save", "after_write", "before_commit", "after_commit")


def config(model: str, data: str, run_dir: Path, async_save: bool):
    from megaladder.config.resolve import resolve
    from megaladder.config.train import SftConfig

    return resolve(SftConfig, [
        "--run-dir", str(run_dir), "--model.path", model, "--data.path", data, "--data.seq-length", "128",
        "--train.global-batch-size", "8",
        "--train.max-steps", str(STEPS), "--train.epochs", "10", "--checkpoint.every", "2", "--optim.lr", "1e-2", "--data.holdout", "0.1",
        "--train.eval-every", "4", "--checkpoint.async-save", "true" if async_save else "false",
        "--data.cache-dir", str(run_dir.parent / "cache"),
    ], prog="test")


def run_fork(make_config, fault: str | None = None, kill_after_s: float | None = None) -> int:
    """Runs SFT in a fork; returns its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if fault:
                os.environ["MEGALADDER_FAULT"] = fault
            if kill_after_s is not None:
                threading.Timer(kill_after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the process ends with it)
            from megaladder.train.sft import run_sft

            status = run_sft(make_config())
        except BaseException as error:
            traceback.print_exc()
            status = getattr(error, "exit_status", 1)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def curves(run_dir: Path) -> tuple[list, list]:
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (run_dir / "held_out.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in metrics], [(r["step"], r["held_out_loss"]) for r in held_out]


def main() -> None:
    model, data, folder, trials = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    import megaladder.train.sft  # noqa: F401  (imported once, before the forks)

    began = time.monotonic()
    assert run_fork(lambda: config(model, data, folder / "whole", False)) == 0
    duration_s = time.monotonic() - began
    whole = curves(folder / "whole")
    rng = random.Random(0)
    for trial in range(trials):
        run_dir, async_save = folder / f"trial{trial}", trial % 4 == 3
        make = lambda run_dir=run_dir, async_save=async_save: config(model, data, run_dir, async_save)  # noqa: E731
        if trial % 2:
            how = {"kill_after_s": rng.uniform(0.2, duration_s)}
        else:
            how = {"fault": f"{FAULT_POINTS[trial // 2 % len(FAULT_POINTS)]}:{rng.randint(1, 5)}:SIGKILL"}
        status, starts = run_fork(make, **how), 1
        while status < 0 and starts < 4:
            status, starts = run_fork(make), starts + 1
        same = curves(run_dir) == whole if status == 0 else None
        print(json.dumps({"trial": trial, "how": how, "starts": starts, "status": status, "identical": same}), flush=True)


if __name__ == "__main__":
    main()
