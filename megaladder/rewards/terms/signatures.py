"""A user's reward function, whatever contract it was written for, as one call on a list of samples.

    ours   (prompt, completion, gold, …)                  one sample, arguments by name
    TRL    (completions, **columns), prompts=             all samples at once, columns as lists
    verl   (data_source, solution_str, ground_truth, extra_info)    one sample; number or {"score"}
    verl   (data_sources, solution_strs, ground_truths, extra_infos)    all samples at once

Which one it is, its parameters say. Any of them may be `async`. Runs in the function's own process.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""A sample as it travels: id, prompt (text), messages (a list, or null where the row's prompt was
text), completion, completion_ids, gold, kind, source, correct, metadata."""

GOLD_NAMES = ("gold", "ground_truth", "solution", "answer")
OWN_NAMES = ("id", "prompt", "completion", "completion_ids", "kind", "correct", "metadata")
_VERL = {
    "data_source": "source",
    "solution_str": "completion",
    "ground_truth": "gold",
    "extra_info": "metadata",
}


class Bug(Exception):
    """The function raised, or returned no number. `sample`: its index in the call."""

    def __init__(self, text: str, sample: int = 0):
        super().__init__(text)
        self.sample = sample


class UserFunction:
    """A loaded function. `batched`: it wants all samples of a call at once."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        parameters = list(inspect.signature(function).parameters.values())
        self._takes_rest = any(one.kind is one.VAR_KEYWORD for one in parameters)
        named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        self._names = [one.name for one in named]
        self._required = [one.name for one in named if one.default is one.empty]
        self.style = self._find_style()
        self.is_async = inspect.iscoroutinefunction(function)
        self.batched = self.style in ("trl", "verl_batch") or self.is_async

    def _find_style(self) -> str:
        names = set(self._names)
        if "solution_strs" in names:
            return "verl_batch"
        if "solution_str" in names:
            return "verl"
        return "trl" if names & {"completions", "prompts"} else "ours"

    def __call__(self, samples: Sequence[Message]) -> list[float | None]:
        """The value of each sample; None where a TRL function says that it does not apply.

        Raises:
            Bug: with the index of the sample.
        """
        if self.style in ("trl", "verl_batch"):
            return self._all_at_once(samples)
        calls = [self._arguments(sample) for sample in samples]
        if self.is_async:
            found = asyncio.run(self._gather(calls))
        else:
            found = [self._one(index, call) for index, call in enumerate(calls)]
        return [as_number(value, index) for index, value in enumerate(found)]

    def _one(self, index: int, arguments: Mapping[str, Any]) -> Any:
        try:
            return self._function(**arguments)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # a bug of theirs, named so
            raise Bug(describe(error), index) from error

    async def _gather(self, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
        found = await asyncio.gather(
            *(self._function(**arguments) for arguments in calls), return_exceptions=True
        )
        for index, value in enumerate(found):
            if isinstance(value, BaseException):
                raise Bug(describe(value), index)
        return found

    def _all_at_once(self, samples: Sequence[Message]) -> list[float | None]:
        arguments = self._columns(samples)
        try:
            found = self._function(**arguments)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
            values = list(found.tolist() if hasattr(found, "tolist") else found)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise Bug(describe(error)) from error
        if len(values) != len(samples):
            raise Bug(f"returned {len(values)} values for {len(samples)} completions")
        return [
            None if value is None and self.style == "trl" else as_number(value, index)
            for index, value in enumerate(values)
        ]

    def _columns(self, samples: Sequence[Message]) -> dict[str, list[Any]]:
        if self.style == "verl_batch":
            return {
                f"{name}s": [sample[ours] for sample in samples] for name, ours in _VERL.items()
            }
        talks = [sample["messages"] is not None for sample in samples]
        known: dict[str, list[Any]] = {
            "prompts": [
                s["messages"] if t else s["prompt"] for s, t in zip(samples, talks, strict=True)
            ],
            "completions": [
                [{"role": "assistant", "content": s["completion"]}] if t else s["completion"]
                for s, t in zip(samples, talks, strict=True)
            ],
            "completion_ids": [sample["completion_ids"] for sample in samples],
        }
        columns = dict.fromkeys(name for sample in samples for name in sample["metadata"])
        for name in (*columns, *GOLD_NAMES):
            known.setdefault(name, [_column(sample, name) for sample in samples])
        return self._wanted(known)

    def _arguments(self, sample: Message) -> dict[str, Any]:
        if self.style == "verl":
            known = {name: sample[ours] for name, ours in _VERL.items()}
        else:
            known = {name: sample[name] for name in OWN_NAMES}
            for name in (*sample["metadata"], *GOLD_NAMES):
                known.setdefault(name, _column(sample, name))
        return self._wanted(known)

    def _wanted(self, known: Mapping[str, Any]) -> dict[str, Any]:
        lacking = [name for name in self._required if name not in known]
        if lacking:
            raise Bug(
                f"wants {', '.join(lacking)}; there is {', '.join(known)}, by name, columns of the"
                " row among them"
            )
        return {
            name: value for name, value in known.items() if self._takes_rest or name in self._names
        }


def _column(sample: Message, name: str) -> Any:
    """A column of the row; the names under which answers are known fall back to the gold one."""
    if name in sample["metadata"]:
        return sample["metadata"][name]
    return sample["gold"] if name in GOLD_NAMES else None


async def _awaited(value: Any) -> Any:
    return await value


def as_number(value: Any, index: int) -> float:
    """A finite float of what a function returned for one sample. Raises Bug."""
    score = value.get("score") if isinstance(value, Mapping) else value
    if isinstance(score, tuple) and score:
        score = score[0]
    to_scalar = getattr(score, "item", None)  # of numpy and torch
    if callable(to_scalar) and not isinstance(score, (bool, int, float)):
        score = to_scalar()
    try:
        number = float(score) if isinstance(score, (bool, int, float)) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise Bug(
            f"returned {type(value).__name__} {_shown(value)}; expected a finite number", index
        )
    return number


def load(spec: str) -> UserFunction:
    """`path.py:function`, imported as a module of its own name. Raises ValueError with the fix."""
    path, _, name = spec.rpartition(":")
    module_name = os.path.basename(path).removesuffix(".py")
    sys.path.insert(0, os.path.dirname(path))
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    # dataclasses and postponed annotations look their module up here
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        there = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(f"{path} has no function {name!r}; it has {', '.join(there) or 'none'}")
    return UserFunction(function)


def describe(error: BaseException) -> str:
    """Type, message and innermost line of an error, whatever its own text does."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {os.path.basename(item.filename)}:{item.lineno}" for item in frames)
    return f"{type(error).__name__}: {_shown(error, str)}{where}"[:400]


def _shown(value: Any, show: Callable[[Any], str] = repr) -> str:
    try:
        return show(value)[:200]
    except Exception:  # noqa: BLE001  their __repr__ or __str__
        return "(not printable)"
