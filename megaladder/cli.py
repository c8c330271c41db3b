"""The command line: one table of verbs; each is a config class, a function that takes the config,
and a line of help. No logic.

To add a verb, add a line to `VERBS`. Config class and function are named as "module:attribute" and
imported only when their verb runs, so `megaladder --help` stays fast and a missing package breaks
one verb, not all. The function returns its exit status, or None for 0; it raises a
`MegaladderError` for what the user must act on (one message, no traceback).
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaladder import __version__
from megaladder.errors import ConfigError, MegaladderError, MissingDependencyError
from megaladder.process import ending, heartbeat, last_word, signals

if TYPE_CHECKING:
    # pydantic is imported when a verb runs
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.sft import SftConfig


@dataclass(frozen=True)
class Verb:
    """One command. `config` may also name a function `(args) -> config class` where the class
    depends on the file."""

    name: str
    config: str
    run: str
    help: str
    group: str
    # function `(config) -> bool`: whether it is all done already, and was said
    finished: str | None = None
    takes_yaml: bool = False  # a first argument without dashes is a run.yaml
    # config.parallel says how many ranks; started here unless torchrun did
    distributed: bool = False
    # the same command goes on where an earlier one was stopped: stop signals end it with status 3
    resumes: bool = False


VERBS: tuple[Verb, ...] = (
    Verb(
        "check",
        "megaladder.preflight.check:config_class",
        "megaladder.preflight.check:run_check",
        "resolve a run.yaml: batch arithmetic, layout, memory, a data sample; starts nothing",
        "Train",
        takes_yaml=True,
    ),
    Verb(
        "dryrun",
        "megaladder.dryrun.verb:config_class",
        "megaladder.dryrun.verb:run_dryrun",
        "one update of a run.yaml on all its ranks, without GPUs: bytes, every collective, and"
        " whether the ranks fit together",
        "Train",
        takes_yaml=True,
    ),
    Verb(
        "sft",
        "megaladder.config.sft:SftConfig",
        "megaladder.train.sft:run_sft",
        "supervised fine-tuning; starts as many ranks as the layout needs, resumes by itself",
        "Train",
        finished="megaladder.finished:answer_training",
        takes_yaml=True,
        distributed=True,
        resumes=True,
    ),
    Verb(
        "grpo",
        "megaladder.config.grpo:GrpoConfig",
        "megaladder.train.grpo:run_grpo",
        "GRPO, Dr.GRPO, DAPO, GSPO, CISPO; starts the engine and as many ranks as the layout needs,"
        " resumes by itself",
        "Train",
        finished="megaladder.finished:answer_training",
        takes_yaml=True,
        distributed=True,
        resumes=True,
    ),
    Verb(
        "convert hf-to-megatron",
        "megaladder.config.verbs.convert:HfToMegatronConfig",
        "megaladder.checkpoints_conv.verbs:run_hf_to_megatron",
        "Hugging Face folder → megatron-core checkpoint that loads at any layout; streams",
        "Train",
        finished="megaladder.finished:answer_conversion",
    ),
    Verb(
        "convert megatron-to-hf",
        "megaladder.config.verbs.convert:MegatronToHfConfig",
        "megaladder.checkpoints_conv.verbs:run_megatron_to_hf",
        "checkpoint of a run, or a converted one → Hugging Face folder; streams",
        "Train",
        finished="megaladder.finished:answer_conversion",
    ),
    Verb(
        "convert verify",
        "megaladder.config.verbs.convert:VerifyConfig",
        "megaladder.checkpoints_conv.verbs:run_verify",
        "compare a Hugging Face folder with a checkpoint: every tensor, and the logits",
        "Train",
    ),
    Verb(
        "plan",
        "megaladder.config.verbs.plan:PlanConfig",
        "megaladder.plan.verb:run_plan",
        "layouts for a model on N GPUs: memory per GPU by part, predicted step time, tokens/s/GPU,"
        " MFU; SFT and GRPO",
        "Train",
    ),
    Verb(
        "bench train",
        "megaladder.config.verbs.bench:BenchTrainConfig",
        "megaladder.tools.bench_training:run_bench_train",
        "tokens/s of an SFT step against plain transformers loops; or at a 14B model's layer"
        " shapes: TFLOP/s, MFU",
        "Bench",
    ),
    Verb(
        "bench kernels",
        "megaladder.config.verbs.bench:BenchKernelsConfig",
        "megaladder.tools.bench_kernels:run_bench_kernels",
        "the loss head against its peers: time, bandwidth, memory",
        "Bench",
    ),
    Verb(
        "bench convert",
        "megaladder.config.verbs.convert:BenchConvertConfig",
        "megaladder.tools.bench_convert:run_bench_convert",
        "seconds and memory of a conversion against a plain copy of the files",
        "Bench",
    ),
    Verb(
        "doctor",
        "megaladder.preflight.doctor:DoctorConfig",
        "megaladder.preflight.doctor:run_doctor",
        "what is installed, what each feature needs, the command that adds it",
        "Train",
    ),
    Verb(
        "eval",
        "megaladder.config.verbs.evaluation:eval_config",
        "megaladder.evaluation.verb:run_eval",
        "benchmarks: generate, grade, append; resumable; lm-eval files, scores with intervals",
        "Evaluate",
        finished="megaladder.finished:answer_evaluation",
        takes_yaml=True,
        resumes=True,
    ),
    Verb(
        "bench rollout",
        "megaladder.config.verbs.bench:BenchRolloutConfig",
        "megaladder.tools.bench_rollout:run_bench_rollout",
        "tokens per second of our engine against bare vllm.LLM.generate",
        "Bench",
    ),
    Verb(
        "grade",
        "megaladder.config.verbs.grade:GradeConfig",
        "megaladder.analysis.grade:run_grade",
        "grade stored responses with the grader of RL and the benchmarks",
        "Evaluate",
    ),
    Verb(
        "analyze pass-at-k",
        "megaladder.config.verbs.grade:PassAtKConfig",
        "megaladder.analysis.studies.pass_at_k:run_pass_at_k",
        "avg@n, unbiased pass@k, cov@n, maj@n of graded rows, with intervals over problems",
        "Evaluate",
    ),
    Verb(
        "analyze transfer",
        "megaladder.config.verbs.analysis:TransferConfig",
        "megaladder.analysis.studies.transfer:run_transfer",
        "transferability index v1, v2: how much of the gain in maths arrives elsewhere",
        "Analyze",
    ),
    Verb(
        "analyze scaling",
        "megaladder.config.verbs.analysis:ScalingConfig",
        "megaladder.analysis.studies.scaling:run_scaling",
        "test-time scaling: control, scaling, performance; sequential against parallel",
        "Analyze",
    ),
    Verb(
        "analyze ladder",
        "megaladder.config.verbs.analysis:LadderConfig",
        "megaladder.analysis.studies.ladder:run_ladder",
        "AIME24 by difficulty tier from stored samples; potential and stability",
        "Analyze",
    ),
    Verb(
        "analyze predict",
        "megaladder.config.verbs.analysis:PredictConfig",
        "megaladder.analysis.studies.predict:run_predict",
        "which SFT metric predicts the score after RL; which runs to take into RL",
        "Analyze",
    ),
    Verb(
        "analyze trajectory",
        "megaladder.config.verbs.analysis:TrajectoryConfig",
        "megaladder.analysis.studies.trajectory:run_trajectory",
        "dip and recovery over checkpoints; which checkpoint to keep",
        "Analyze",
    ),
    Verb(
        "analyze shift",
        "megaladder.config.verbs.analysis:ShiftConfig",
        "megaladder.analysis.shift.verb:run_shift",
        "KL, token rank shift and PCA shift of a tuned model (needs torch)",
        "Analyze",
    ),
    Verb(
        "analyze budget",
        "megaladder.config.verbs.analysis:BudgetConfig",
        "megaladder.analysis.studies.budget:run_budget",
        "accuracy if every answer had been cut at a token budget",
        "Analyze",
    ),
    Verb(
        "analyze compare",
        "megaladder.config.verbs.analysis:CompareConfig",
        "megaladder.analysis.studies.compare:run_compare",
        "is this difference real? paired tests over problems; equal compute",
        "Analyze",
    ),
    Verb(
        "report",
        "megaladder.config.verbs.analysis:ReportConfig",
        "megaladder.analysis.report.verb:run_report",
        "one self-contained HTML page over run and eval folders, and a CSV with its numbers",
        "Analyze",
    ),
    Verb(
        "data get",
        "megaladder.config.verbs.data:GetConfig",
        "megaladder.curate.get:run_get",
        "published problem sets (gsm8k, math500, …) from the hub into plain files",
        "Data",
    ),
    Verb(
        "data stats",
        "megaladder.config.verbs.data:StatsConfig",
        "megaladder.curate.stats:run_stats",
        "rows, schema, token lengths, loss-token share, duplicates, one rendered sample",
        "Data",
    ),
    Verb(
        "data decontaminate",
        "megaladder.config.verbs.data:DecontaminateConfig",
        "megaladder.curate.decontaminate:run_decontaminate",
        "n-gram overlap with benchmarks, row by row, and a clean copy",
        "Data",
    ),
    Verb(
        "data score",
        "megaladder.config.verbs.data:ScoreConfig",
        "megaladder.curate.score:run_score",
        "rule score, its parts, style features and quality levels as new columns",
        "Data",
    ),
    Verb(
        "data select",
        "megaladder.config.verbs.data:SelectConfig",
        "megaladder.curate.select.run:run_select",
        "seeded, staged selection by a recipe; counts and reasons after every stage",
        "Data",
    ),
    Verb(
        "data sample",
        "megaladder.config.verbs.data:sample_config_class",
        "megaladder.curate.teacher.sample:run_sample",
        "rejection sampling from a teacher through the shared engine and grader; resumable",
        "Data",
        finished="megaladder.finished:answer_sampling",
        resumes=True,
    ),
    Verb(
        "data make",
        "megaladder.config.verbs.data:make_config_class",
        "megaladder.curate.make.run:run_make",
        "generated arithmetic or countdown with verified reasoning traces",
        "Data",
    ),
)


def main(argv: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Runs `megaladder argv…`; returns the exit status (the table is in `process.ending`).

    own_process: nothing else runs in this process, so stop signals are ours; always so without
    argv.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None or own_process:
        _listen(args)
    try:
        status = _dispatch(args)
        if status == 0:
            last_word.leave(last_word.Ending("finished", 0, "all steps are done"))
        return status
    except MegaladderError as error:
        return ending.of_error(error)
    except KeyboardInterrupt:
        print("megaladder: interrupted", file=sys.stderr, flush=True)
        return ending.INTERRUPTED
    except BrokenPipeError:
        # or the interpreter complains when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ending.BROKEN_PIPE
    except BaseException as error:
        status_of_disk = ending.of_bug(error)
        if status_of_disk is None:
            raise
        return status_of_disk
    finally:
        heart = heartbeat.of_this_rank()
        if heart is not None:
            heart.end()
        if signals.listening():
            signals.ignore()


def _listen(args: Sequence[str]) -> None:
    """Stop signals of a verb that can go on are taken from here on, before anything is imported."""
    verbs = (verb for verb in VERBS if verb.resumes)
    if any(tuple(args[: len(words)]) == words for words in (tuple(v.name.split()) for v in verbs)):
        signals.listen(ending.at_once)


def find_verb(args: Sequence[str]) -> tuple[Verb, list[str]]:
    """The verb that the words name (the longest name that fits), and what follows it."""
    by_name = {verb.name: verb for verb in VERBS}
    for num_words in (3, 2, 1):
        verb = by_name.get(" ".join(args[:num_words]))
        if verb is not None and len(args) >= num_words:
            return verb, list(args[num_words:])
    raise ConfigError(_unknown_verb(args, list(by_name)))


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"megaladder {__version__}")
        return 0
    words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))
    family = [verb for verb in VERBS if verb.name.startswith(f"{' '.join(words)} ")]
    # `megaladder convert`, `megaladder data make --help`
    if family and args[len(words) :] in ([], ["-h"], ["--help"]):
        print(overview(family))
        return 0
    verb, rest = find_verb(args)
    return _run_verb(verb, rest, args)


def _run_verb(verb: Verb, rest: list[str], args: list[str]) -> int:
    try:
        from megaladder.config.resolve import resolve, to_yaml
    except ModuleNotFoundError as error:
        if str(error.name).startswith("megaladder"):
            raise
        raise MissingDependencyError(
            f"{sys.executable} has no package {error.name}; fix: `make env`, then `."
            " .venv/bin/activate` (or pip install -e . into your own environment)"
        ) from None

    print_config = "--print-config" in rest
    rest = [arg for arg in rest if arg != "--print-config"]
    config_class = load(verb.config)
    if not isinstance(config_class, type):
        config_class = config_class(rest)
    takes_yaml = verb.takes_yaml and not getattr(config_class, "file_is_argument", False)
    config = resolve(config_class, rest, prog=f"megaladder {verb.name}", takes_yaml=takes_yaml)
    if print_config:
        print(to_yaml(config), end="")
        return 0
    if verb.finished and load(verb.finished)(config):
        return 0
    if verb.distributed:
        status = _place_ranks(config, args)
        if status is not None:
            return status
    return load(verb.run)(config) or 0


def _place_ranks(config: SftConfig | GrpoConfig, args: list[str]) -> int | None:
    """Checks the number of ranks against the layout; starts local ranks where none were started.
    None = this process is a rank."""
    from megaladder.config.rules.layout import check_world
    from megaladder.preflight.fit import check_model
    from megaladder.process.launch import launch_local
    from megaladder.process.ranks import die_with_launcher, under_launcher

    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    if under_launcher():
        die_with_launcher()
        check_world(config, int(os.environ["WORLD_SIZE"]))
        return None
    num_ranks = config.parallel.ranks or config.parallel.model_ranks
    check_world(config, num_ranks)
    check_model(config)
    if num_ranks == 1:
        return None
    command = [sys.executable, "-m", "megaladder", *args]
    return launch_local(num_ranks, command, Path(config.run_dir), config.train.timeout_s)


def run_example(verb: str, run_yaml: Path, overrides: Sequence[str]) -> int:
    """What a launch script of examples/ does once it is Python: `megaladder VERB run.yaml
    overrides`, with the ranks that there are.

    Under torchrun with a number of processes that number counts, not the file's; torchrun without
    one started a single process, which then starts what the file asks for.
    """
    from megaladder.process.ranks import under_launcher

    if os.environ.get("WORLD_SIZE") == "1":
        for name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "GROUP_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
        ):
            os.environ.pop(name, None)
    started = under_launcher() and not any(
        argument.startswith("--parallel.ranks") for argument in overrides
    )
    ranks = ["--parallel.ranks", os.environ["WORLD_SIZE"]] if started else []
    return main([verb, str(run_yaml), *ranks, *overrides], own_process=True)


def load(target: str) -> Callable[..., Any]:
    """The attribute that "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def overview(verbs: Sequence[Verb] = VERBS) -> str:
    """The verbs by group, in the table's order."""
    width = max(len(verb.name) for verb in verbs) + 2
    lines = ["usage: megaladder <verb> [run.yaml] [--a.b.c value …]"]
    lines += ["       megaladder <verb> --help    every field: default, unit, meaning"]
    for group in dict.fromkeys(verb.group for verb in verbs):
        lines += ["", group]
        lines += [f"  {verb.name:<{width}}{verb.help}" for verb in verbs if verb.group == group]
    if any(verb.takes_yaml for verb in verbs):
        lines += [
            "",
            (
                "--print-config prints the resolved configuration of a verb that takes a run.yaml,"
                " and exits."
            ),
        ]
    return "\n".join(lines)


def _unknown_verb(args: Sequence[str], names: Sequence[str]) -> str:
    typed = args[0]
    family = [name for name in names if name.startswith(f"{typed} ")]
    if family:
        words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args[:3]))
        near = difflib.get_close_matches(
            " ".join(words), family, n=1, cutoff=0.5
        ) or difflib.get_close_matches(" ".join(words[:2]), family, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(family)}"
        return f"unknown verb '{' '.join(words)}'; fix: {hint}"
    candidates = list(dict.fromkeys(part for name in names for part in (name.split(" ")[0], name)))
    near = difflib.get_close_matches(typed, candidates, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "megaladder --help lists them"
    return f"unknown verb '{typed}'; fix: {hint}"
