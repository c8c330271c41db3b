"""From words to a call: finds the verb, resolves its configuration, runs it, answers a status."""

from __future__ import annotations

import difflib
import importlib
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from megaladder import __version__, console, startup
from megaladder.cli.table import VERBS, Verb
from megaladder.cli.wanted import WANTED
from megaladder.console import imports
from megaladder.console.expected import silence_expected_warnings
from megaladder.errors import ConfigError, MegaladderError, MissingDependencyError
from megaladder.process import ending, heartbeat, last_word, signals

if TYPE_CHECKING:
    # pydantic is imported when a verb runs
    from megaladder.config.base import StrictModel
    from megaladder.config.grpo import GrpoConfig
    from megaladder.config.sft import SftConfig


def main(argv: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Runs `megaladder argv…`; returns the exit status (the table is in `process.ending`).

    own_process: nothing else runs in this process, so stop signals are ours; always so without
    argv.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    own_process = own_process or argv is None
    loud = os.environ.get(console.QUIET)
    try:
        if own_process:
            _own_process(args)
        if "--quiet" in args:
            # the ranks that are started inherit it
            os.environ[console.QUIET] = "1"
            args.remove("--quiet")
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
        known = ending.of_bug(error, args)
        if known is None:
            raise
        return known
    finally:
        if own_process and not signals.listening():
            # the work is over: an interrupt from here on has nothing to put in order
            startup.listen(args)
        console.VOICE.end()
        if loud is None:
            os.environ.pop(console.QUIET, None)
        heart = heartbeat.of_this_rank()
        if heart is not None:
            heart.end()
        if signals.listening():
            signals.ignore()


def _own_process(args: Sequence[str]) -> None:
    """What a command does to its own process, before anything large is imported.

    Stop signals of a verb that can go on are taken from here on."""
    startup.restart_in_utf8()
    if startup.resumes(args):
        signals.listen(ending.at_once)
    else:
        startup.hand_over()
    imports.begin()
    _write_anything()
    silence_expected_warnings()


def _write_anything() -> None:
    """A character that a terminal's encoding lacks (latin-1, ascii) is shown as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def find_verb(args: Sequence[str]) -> tuple[Verb, list[str]]:
    """The verb that the words name (the longest name that fits), and what follows it."""
    by_name = {verb.name: verb for verb in VERBS}
    for num_words in (3, 2, 1):
        verb = by_name.get(" ".join(args[:num_words]))
        if verb is not None and len(args) >= num_words:
            return verb, list(args[num_words:])
    raise ConfigError(_unknown_verb(args, list(by_name)))


def _dispatch(args: list[str]) -> int:
    if args[:1] == ["help"] and args[1:]:
        args = [*args[1:], "--help"]
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


def config_class_of(verb: Verb, rest: Sequence[str]) -> type[StrictModel]:
    """The verb's configuration; of one whose class depends on the file, that of these arguments."""
    found = load(verb.config)
    return found if isinstance(found, type) else found(rest)


def resolve_words(verb: Verb, config_class: type[StrictModel], rest: Sequence[str]) -> StrictModel:
    """The configuration that the words behind a verb say. Raises ConfigError."""
    from megaladder.config.resolve import resolve

    takes_yaml = verb.takes_yaml and not getattr(config_class, "file_is_argument", False)
    return resolve(config_class, rest, f"megaladder {verb.name}", takes_yaml)


def _run_verb(verb: Verb, rest: list[str], args: list[str]) -> int:
    # imports alone take seconds on a busy machine
    if not {"-h", "--help", "--print-config"} & set(rest):
        console.VOICE.turn(f"{verb.name} is at work")
    try:
        from megaladder.config.resolve import to_yaml
    except ModuleNotFoundError as error:
        if str(error.name).startswith("megaladder"):
            raise
        raise MissingDependencyError(
            f"{sys.executable} has no package {error.name}; fix: `make env`, then `."
            " .venv/bin/activate` (or pip install -e . into your own environment)"
        ) from None

    print_config = "--print-config" in rest
    rest = [arg for arg in rest if arg != "--print-config"]
    config_class = config_class_of(verb, rest)
    try:
        config = resolve_words(verb, config_class, rest)
    except SystemExit as end:
        if end.code == 0:  # --help was shown
            print(f"\nexample: megaladder {verb.name} {_example(verb, config_class)}")
        raise
    if print_config:
        print(to_yaml(config), end="")
        return 0
    if verb.finished and load(verb.finished)(config):
        return 0
    if verb.distributed:
        # the table says of which verbs
        status = _place_ranks(cast("SftConfig | GrpoConfig", config), args)
        if status is not None:
            return status
    try:
        run = load(verb.run)
        imports.done()
        return run(config) or 0
    except MegaladderError as error:
        error.args = (in_own_words(str(error), config_class), *error.args[1:])
        raise


def in_own_words(message: str, config_class: type[StrictModel]) -> str:
    """Keys of a run.yaml as the flags of a verb that has them without their section.

    `data.fields {answer: y}` of a reader of data is `--fields '{answer: y}'` for `data stats`."""
    from megaladder.config.base import leaf_keys

    own = leaf_keys(config_class)

    def flag(found: re.Match[str]) -> str:
        key = found[1]
        if key not in own or f"data.{key}" in own or f"model.{key}" in own:
            return found[0]
        name = f"--{key.replace('_', '-')}"
        return f"{name} '{found[2].strip()}'" if found[2] else name

    return re.sub(r"(?<![\w.])(?:data|model)\.([a-z_]+)\b:?( \{[^}]*\})?", flag, message)


def _example(verb: Verb, config_class: type[StrictModel]) -> str:
    """What to type after the verb's name: its own example, a run.yaml, or what is required."""
    from megaladder.config.base import is_positional, leaf_keys

    if verb.example is not None:
        return verb.example
    if verb.takes_yaml:
        return "run.yaml"
    words = []
    for key, field in leaf_keys(config_class).items():
        if field.is_required():
            flag = "" if is_positional(field) else f"--{key.replace('_', '-')} "
            words.append(f"{flag}{key.rpartition('.')[2].upper()}")
    return " ".join(words)


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
    num_ranks = config.parallel.ranks or config.parallel.least_ranks
    check_world(config, num_ranks)
    check_model(config)
    if num_ranks == 1:
        return None
    # the ranks say what they do
    console.VOICE.end()
    command = [sys.executable, "-m", "megaladder", *args]
    imports.done()
    return launch_local(num_ranks, command, Path(config.run_dir), config.train.timeout_s)


def run_example(verb: str, run_yaml: Path, overrides: Sequence[str]) -> int:
    """What a launch script of examples/ does once it is Python.

    `megaladder VERB run.yaml overrides`, with the ranks that there are.

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
    if len(verbs) == len(VERBS):
        lines += ["first steps: doctor → examples → check → sft → grpo → eval → report → chat"]
    for group in dict.fromkeys(verb.group for verb in verbs):
        lines += ["", group]
        lines += [f"  {verb.name:<{width}}{verb.help}" for verb in verbs if verb.group == group]
    lines += ["", "--quiet leaves out progress: results, warnings and errors stay."]
    if any(verb.takes_yaml for verb in verbs):
        lines += [
            "--print-config prints the resolved configuration of a verb that takes a run.yaml,"
            " and exits."
        ]
    return "\n".join(lines)


def _unknown_verb(args: Sequence[str], names: Sequence[str]) -> str:
    typed = args[0]
    if Path(typed).suffix in (".yaml", ".yml"):
        return f"{typed} stands where a verb is expected; fix: megaladder sft {shlex.quote(typed)} (or grpo, check, eval)"
    words = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args[:3])) or [typed]
    family = [name for name in names if name.startswith(f"{typed} ")]
    close = _close(" ".join(words), family or names, cutoff=0.8)
    # meaning before spelling, but for a slip of a finger; `data download` as `download`
    meant = next(filter(None, (_meant(word) for word in words[::-1])), None)
    if meant and not (family and close):
        return f"unknown verb '{' '.join(words)}'; fix: {meant}"
    if family:
        close = close or _close(" ".join(words[:2]), family, cutoff=0.7)
        hint = f"did you mean '{close}'?" if close else f"one of: {', '.join(family)}"
        return f"unknown verb '{' '.join(words)}'; fix: {hint}"
    first = [part for name in names for part in (name.split(" ")[0], name)]
    close = _close(typed.lower(), list(dict.fromkeys(first)), cutoff=0.6)
    hint = f"did you mean '{close}'?" if close else "megaladder --help lists them"
    return f"unknown verb '{typed}'; fix: {hint}"


def _close(word: str, names: Sequence[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=cutoff)), None)


def _meant(word: str) -> str | None:
    """What a word means that is no verb, in the singular too."""
    word = word.lower().replace("_", "-")
    found = (WANTED.get(name) for name in (word, word.removesuffix("s"), word.removesuffix("es")))
    return next(filter(None, found), None)
