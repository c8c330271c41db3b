"""The program that a worker process runs: read a batch of samples, grade one after the other,
answer each at once.

Started by `worker.GradePool` as a script with an empty environment. Frames on both pipes: 4 bytes
length (big endian), then JSON. First frame in: {"sys_path", "function", "timeout_s",
"memory_bytes"}; first frame out: {"ready": [protections]} or {"error": text}. Then lists of tasks
in, one answer a task out. JSON and not pickle: what comes out of this process is not trusted by its
reader.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from megaladder.rewards.sandbox import Limits

MAX_FRAME_BYTES = 256 << 20
MAX_DETAIL_CHARS = 400
MAX_REWARD = 1e9  # beyond it float32 advantages have lost every digit of the others
# what a reward function may ask for, by name
ARGUMENTS = ("response", "completion", "gold", "kind", "id", "metadata", "problem")


def read_frame(stream: BinaryIO) -> Any:
    """One JSON value; None at the end of the stream."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    return json.loads(stream.read(struct.unpack(">I", header)[0]))


def frame(value: Any) -> bytes:
    body = json.dumps(value).encode("ascii")
    return struct.pack(">I", len(body)) + body


def main() -> None:
    incoming, outgoing = _take_pipes()
    setup = read_frame(incoming)
    if setup is None:
        return
    try:
        work, limits, active = _prepare(setup)
    except Exception as error:  # noqa: BLE001  everything that can go wrong at import or in the user's file is reported, then this process ends
        outgoing.write(frame({"error": _describe(error)}))
        return
    outgoing.write(frame({"ready": active}))
    from megaladder.rewards.sandbox import start_clock, stop_clock

    while (batch := read_frame(incoming)) is not None:
        for task in batch:
            start_clock(limits)
            answer = work(task)
            stop_clock()
            outgoing.write(frame(answer))


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Our pipes under new numbers; 0, 1 and 2 go to /dev/null, so that nothing a sample prints
    reaches anybody or fills a disk."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return incoming, outgoing


def _prepare(
    setup: Mapping[str, Any],
) -> tuple[Callable[[Mapping[str, Any]], dict[str, Any]], Limits, list[str]]:
    sys.path[:0] = setup["sys_path"][:1]
    sys.path += setup["sys_path"][1:]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from megaladder.rewards.sandbox import Limits, enter

    folder = tempfile.mkdtemp(prefix="megaladder-grade-")
    os.chdir(folder)
    os.rmdir(
        folder
        # a working directory that is already gone: nothing can be created in it and nothing is left
        # behind
    )
    if setup["function"]:
        function = load_function(setup["function"])
        work = partial(_reward, function)
    else:
        from megaladder.rewards.grade import OWN, grade

        # imports all that grading needs before the limits are set
        assert grade("\\boxed{x+1}", "1+x", "math").correct
        if setup["grader"] != OWN:
            import math_verify  # noqa: F401
        work = partial(_grade, partial(grade, grader=setup["grader"]))
    limits = Limits(setup["timeout_s"], setup["memory_bytes"], trusted_code=bool(setup["function"]))
    return work, limits, enter(limits)


def _grade(grade: Callable[..., Any], task: Mapping[str, Any]) -> dict[str, Any]:
    try:
        graded = grade(task["response"], task["gold"], task["kind"])
    except Exception as error:  # noqa: BLE001  model text may break a parser in new ways: one sample, counted and named as a crash
        return {"crash": _describe(error)}
    return {
        "correct": graded.correct,
        "answer": graded.answer,
        "reason": graded.reason.value,
        "detail": graded.detail[:MAX_DETAIL_CHARS],
    }


def _reward(
    function: Callable[[Mapping[str, Any]], Any], task: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        value = function(task)
    except MemoryError:
        return {"crash": "MemoryError: the function needs more memory than memory_bytes allows"}
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001  a bug of theirs, whatever it is: the parent raises it
        return {"bug": _describe(error)}
    reward = _finite(value)
    if reward is None:
        return {
            "bug": f"returned {type(value).__name__} {_safe_repr(value)}; expected a finite number"
            f" between -{MAX_REWARD:g} and {MAX_REWARD:g}"
        }
    return {"reward": reward}


def _finite(value: Any) -> float | None:
    """The value as a float of a size that means, deviations and their squares can be taken of; None
    for anything else: None, text, complex, NaN, infinity, an integer beyond floats."""
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        return None
    return number if abs(number) <= MAX_REWARD else None


def _describe(error: BaseException) -> str:
    """Type, message and the innermost lines of the traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    where = "".join(f" at {os.path.basename(item.filename)}:{item.lineno}" for item in frames[-1:])
    return f"{type(error).__name__}: {_safe_text(error)}{where}"[:MAX_DETAIL_CHARS]


def _safe_text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_DETAIL_CHARS]
    except Exception:  # noqa: BLE001  their __str__
        return "(no message)"


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001  their __repr__
        return "(no repr)"


def load_function(spec: str) -> Callable[[Mapping[str, Any]], Any]:
    """`path.py:function` → a callable that takes a task. The function names the arguments it wants
    out of `ARGUMENTS`.

    Raises ValueError with what is wrong and the way out.
    """
    path, _, name = spec.rpartition(":")
    namespace: dict[str, Any] = {"__name__": "megaladder_user_reward", "__file__": path}
    with open(path, encoding="utf-8") as file:
        # the user's own file, named by the user
        exec(compile(file.read(), path, "exec"), namespace)
    function = namespace.get(name)
    if not callable(function):
        found = (
            ", ".join(sorted(key for key, value in namespace.items() if inspect.isfunction(value)))
            or "no function"
        )
        raise ValueError(f"{path} has no function {name!r}; it has {found}")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [
        parameter
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    unknown = [p.name for p in named if p.name not in ARGUMENTS and p.default is p.empty]
    if unknown:
        raise ValueError(
            f"{name} wants {', '.join(unknown)}; a reward function gets any of"
            f" {', '.join(ARGUMENTS)}, by name"
        )
    wanted = (
        ARGUMENTS
        if takes_all
        else [parameter.name for parameter in named if parameter.name in ARGUMENTS]
    )
    return lambda task: function(**{argument: _argument(task, argument) for argument in wanted})


def _argument(task: Mapping[str, Any], name: str) -> Any:
    """`completion` is the response's text; `problem` is everything but it: {"id", "gold", "kind",
    "metadata"}."""
    if name == "completion":
        return task["response"]
    return (
        {key: value for key, value in task.items() if key != "response"}
        if name == "problem"
        else task[name]
    )


if __name__ == "__main__":
    main()
