"""One command that proves the GPU half of this program, in stages of at most eight minutes each.

    python3 tools/gpu_acceptance.py                    every stage that has not run well yet
    python3 tools/gpu_acceptance.py --budget-s 780     within 13 minutes, what decides most first
    python3 tools/gpu_acceptance.py --list             what each needs and decides, what is done
    python3 tools/gpu_acceptance.py --stages te_parity,sft_curves --no-resume
    python3 tools/gpu_acceptance.py --kit              what an offline machine must be brought
    python3 tools/gpu_acceptance.py --dry-run          what would run, as commands; starts nothing
    python3 tools/gpu_acceptance.py --device cpu --size tiny --out /tmp/rehearsal     on a CPU

Records: docs/h200/*.json; page: docs/h200.md. Each stage is a process of its own: a crash, a hang
or an out-of-memory costs that stage only and is recorded with its reason. Stages that ended well
are kept, and so is each figure of one that did not: the same command goes on where it stopped. The
rehearsal on a CPU finds mistakes; it writes to a folder of its own and never to docs/h200. Exit
status: 0 when every chosen stage is done or was skipped with a reason, 1 when one failed, 2 for
wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # run as a file from a checkout that is not installed

from megaladder.errors import MegaladderError  # noqa: E402
from megaladder.process.gpu_stack import cudnn_environment  # noqa: E402
from megaladder.tools.acceptance import kit, page, record  # noqa: E402
from megaladder.tools.acceptance.context import cases_path, kept_cases, read_json  # noqa: E402
from megaladder.tools.acceptance.table import BY_NAME, BY_VALUE, STAGES, Stage  # noqa: E402

_GRACE_S = 25.0  # beyond a stage's limit: it ends its own commands and writes its reason first


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `command` is how a record says it was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", help="names, comma-separated; default: all in order")
    parser.add_argument("--list", action="store_true", help="show the stages and stop")
    parser.add_argument(
        "--kit", action="store_true", help="show what an offline machine needs and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would run and stop")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep stages that ended well (default)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--size", choices=("full", "tiny"), help="default: full on cuda, tiny on cpu"
    )
    parser.add_argument("--out", help="folder of the records; default docs/h200 (cuda only)")
    parser.add_argument(
        "--work", type=Path, help="folder for models and runs; default runs/acceptance-<device>"
    )
    parser.add_argument(
        "--budget-s",
        type=float,
        default=float("inf"),
        help="all stages within this many seconds (780: a machine lent for 15 minutes), what"
        " decides most first; a stage gets what is left, figures are kept one by one",
    )
    given = parser.parse_args(argv)
    given.size = given.size or ("tiny" if given.device == "cpu" else "full")
    given.work = given.work or ROOT / "runs" / f"acceptance-{given.device}"
    given.command = shlex.join(
        ["python3", "tools/gpu_acceptance.py", *(sys.argv[1:] if argv is None else argv)]
    )
    return given


def chosen(names: str | None) -> list[Stage]:
    """The stages asked for, in the table's order.

    Raises:
        ConfigError: a name that is none.
    """
    if names is None:
        return list(STAGES)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in BY_NAME]
    if unknown:
        raise record.ConfigError(
            f"--stages {', '.join(unknown)}: no such stage; fix: choose from {', '.join(BY_NAME)}"
        )
    return [stage for stage in STAGES if stage.name in asked]


def stage_command(stage: Stage, given: argparse.Namespace, folder: Path, result: Path) -> list[str]:
    """The command line of one stage in a process of its own; it writes its result to `result`."""
    return [
        sys.executable,
        "-m",
        "megaladder.tools.acceptance.child",
        stage.name,
        "--device",
        given.device,
        "--size",
        given.size,
        "--work",
        str(given.work),
        "--records",
        str(folder),
        "--result",
        str(result),
        "--limit-s",
        str(stage.limit_s),
    ]


def run_stage(stage: Stage, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs one stage in its process and returns its record, written."""
    given.work.mkdir(parents=True, exist_ok=True)
    result, log = given.work / f"{stage.name}.result.json", given.work / f"{stage.name}.child.log"
    result.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    forced = {"MEGALADDER_PLATFORM": "cpu"} if given.device == "cpu" else {}
    if not given.resume:
        cases_path(given.work, stage.name).unlink(missing_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            stage_command(stage, given, folder, result),
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cudnn_environment(), "PYTHONPATH": path, **forced},
            start_new_session=True,
        )
        timed_out = False
        try:
            status = process.wait(stage.limit_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            timed_out, status = True, -signal.SIGKILL
        finally:
            # out of time, or we were told to stop: nothing may go on using the device
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = read_json(result) if result.exists() else _lost(given, log, timed_out, status, stage)
    facts = {key: found.get(key) for key in ("device", "gpu", "driver", "cuda", "memory_bytes")}
    figures = found["figures"]
    more = {key: found[key] for key in ("reason", "traceback", "seconds") if key in found}
    rehearsal = given.device == "cpu"  # its figures say nothing about a goal of the GPU
    targets = [target.judge({} if rehearsal else figures) for target in stage.targets]
    made = record.make_record(
        stage.name,
        found["status"],
        given.command,
        facts,
        figures=figures,
        targets=targets,
        size=given.size,
        **more,
    )
    if found["gpu"] is not None or given.device == "cpu":
        record.write_record(folder, made, ROOT)
    return made


def _lost(
    given: argparse.Namespace, log: Path, timed_out: bool, status: int, stage: Stage
) -> dict[str, Any]:
    """A child that wrote no result: it was killed, or could not even import."""
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    reason = (
        f"not done after {stage.limit_s:.0f} s"
        if timed_out
        else f"its process ended with status {status}: {tail}"
    )
    return {
        "status": record.FAILED,
        "reason": reason,
        "figures": {"cases": kept_cases(given.work, stage.name)},
        **given.facts,
    }


def plan_of_run(
    stages: list[Stage], given: argparse.Namespace, folder: Path
) -> list[tuple[Stage, str]]:
    """Each stage and why it runs or does not: "" = it runs."""
    found = []
    for stage in stages:
        done = given.resume and record.is_done(
            record.read_record(folder, stage.name), given.device, given.size
        )
        lacking = kit.missing(stage.needs) if given.device == "cuda" else []
        why = "done" if done else f"lacks {', '.join(lacking)} (see --kit)" if lacking else ""
        found.append((stage, why))
    return found


def show_list(stages: list[Stage], given: argparse.Namespace, folder: Path) -> None:
    """Each stage with its state, what it needs and what it decides."""
    for stage, why in plan_of_run(stages, given, folder):
        print(f"{stage.name:<16} {why or 'to run'}")
        print(
            f"    {stage.measures}; at most {stage.limit_s:.0f} s"
            + (f"; needs {', '.join(stage.needs)}" if stage.needs else "")
            + (f"; after {', '.join(stage.after)}" if stage.after else "")
        )
        if stage.on_cpu:
            print(f"    with --device cpu: {stage.on_cpu}")
        for target in stage.targets:
            print(
                f"    target: {target.name} {'≥' if target.at_least else '≤'} {target.goal:g}"
                f" ({target.source})"
            )


def run_all(stages: list[Stage], given: argparse.Namespace, folder: Path) -> int:
    """Runs what is not done; 1 when a stage failed.

    The page is rendered after each stage of a GPU run."""
    began, failed = time.monotonic(), []
    if given.budget_s < float("inf"):
        stages = [stage for stage in BY_VALUE if stage in stages]
    for stage, why in plan_of_run(stages, given, folder):
        if why:
            print(f"{stage.name:<16} {why}", flush=True)
            continue
        left = given.budget_s - (time.monotonic() - began) - _GRACE_S
        if left < stage.expected_s:
            print(
                f"{stage.name:<16} left for the next call: it takes about {stage.expected_s:.0f} s,"
                f" {max(left, 0):.0f} s of --budget-s {given.budget_s:.0f} are left"
            )
            continue
        stage = replace(stage, limit_s=min(stage.limit_s, left))
        print(f"{stage.name:<16} …", flush=True)
        made = run_stage(stage, given, folder)
        reason = f": {made['reason']}" if made.get("reason") else ""
        print(
            f"{stage.name:<16} {made['status']} in {made.get('seconds', 0):.0f} s{reason}",
            flush=True,
        )
        for target in made["targets"]:
            met = {None: "not measured", True: "met", False: "NOT met"}[target["met"]]
            print(
                f"    {target['name']}: {target['value']} (goal {target['goal']}): {met}",
                flush=True,
            )
        failed += [stage.name] if made["status"] == record.FAILED else []
        _render(given, folder)
    _render(given, folder)
    if failed:
        print(
            f"failed: {', '.join(failed)}; logs in {given.work}; the same command runs them again"
        )
    return 1 if failed else 0


def _render(given: argparse.Namespace, folder: Path) -> None:
    """docs/h200.md for the GPU's own folder; a page beside the records for any other."""
    home = (ROOT / record.H200_FOLDER).resolve()
    if folder == home:
        page.render(folder, ROOT / "docs" / "h200.md")
    elif given.device == "cuda":
        page.render(folder, folder / "h200.md")


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.kit:
        print(kit.TEXT)
        return 0
    try:
        folder, stages = record.output_folder(given.device, given.out, ROOT), chosen(given.stages)
        if given.list:
            show_list(stages, given, folder)
            return 0
        if given.dry_run:
            for stage, why in plan_of_run(stages, given, folder):
                command = shlex.join(
                    stage_command(stage, given, folder, given.work / f"{stage.name}.result.json")
                )
                print(f"{stage.name:<16} {why or command}")
            return 0
        given.facts = record.device_facts(given.device)
        return run_all(stages, given, folder)
    except MegaladderError as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(
            "gpu_acceptance: interrupted; the same command goes on with the stage that was at work",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
