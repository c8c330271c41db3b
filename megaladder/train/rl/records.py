"""A round of rollouts, in memory and as `rollouts/step_N.jsonl`.

The file has a line a completion, can be read by people, and is enough to train from again.

Beside it `step_N.summary.json`: what was left out and why, seconds, and the stream position after
the round. Both are written by renaming, the summary last, so a round on disk is a whole round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from megaladder.errors import DataError
from megaladder.ledger.book import Phase, read_work, row_of
from megaladder.ledger.work import Work
from megaladder.run_dir import atomic_write, read_jsonl, read_object, to_json, write_object
from megaladder.types import (
    Completion,
    FinishReason,
    Graded,
    GradeReason,
    Message,
    Problem,
    RolloutGroup,
)


@dataclass(frozen=True, slots=True)
class Round:
    """One round: whole, graded groups with advantages, sampled by weights `version`.

    cursor: the problem stream's position after it. counts: what was left out or went wrong, by
    reason. seconds: by phase. work: what sampling and grading cost, groups that were left out
    included.
    """

    step: int
    version: int
    groups: tuple[RolloutGroup, ...]
    cursor: int
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    work: Mapping[Phase, Work] = field(default_factory=dict)

    def digest(self) -> str:
        """sha256 over problems, token ids, rewards, advantages and the engine's experts.

        The record of what a step trained on."""
        digest = hashlib.sha256()
        for group in self.groups:
            ids = [completion.token_ids for completion in group.completions]
            digest.update(
                repr(
                    (group.problem.id, group.prompt_ids, ids, group.rewards, group.advantages)
                ).encode()
            )
            for completion in group.completions:
                digest.update(completion.routed_experts.encode())
        return digest.hexdigest()[:16]


def rollouts_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step}.jsonl"


def summary_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step}.summary.json"


def write_round(folder: Path, found: Round, key: str = "") -> None:
    """Stores a round.

    `key` names the settings it was sampled with: `read_round` gives it back only for the same.
    """
    text = "".join(to_json(row) + "\n" for row in _rows(found)).encode()
    atomic_write(rollouts_file(folder, found.step), text)
    summary = {
        "step": found.step,
        "version": found.version,
        "cursor": found.cursor,
        "num_groups": len(found.groups),
        "key": key,
        "counts": dict(found.counts),
        "seconds": dict(found.seconds),
        "work": row_of(found.work),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    write_object(summary_file(folder, found.step), summary)


def read_round(folder: Path, step: int, key: str | None = None) -> Round | None:
    """Reads a stored round.

    With `key`: None where there is none, or one of other settings, or one that has changed since it
    was written, and so has to be made again.

    Raises:
        DataError: without `key`, a file that is not a rollout file, or has changed.
    """
    path, summary_path = rollouts_file(folder, step), summary_file(folder, step)
    if not path.is_file():
        return None
    try:
        summary = _summary(summary_path)
    except DataError:
        if key is None:
            raise
        return None
    written = summary.get("sha256")
    changed = written is not None and written != hashlib.sha256(path.read_bytes()).hexdigest()
    if key is not None and (summary.get("key") != key or changed or written is None):
        return None
    if changed:
        raise DataError(
            f"{path}: is not what {summary_path.name} says (sha256); fix: copy both files again"
        )
    groups = tuple(
        _group(path, list(rows))
        for _, rows in groupby(
            enumerate(read_jsonl(path), 1), key=lambda item: item[1].get("group")
        )
    )
    versions = [completion.policy_version for group in groups for completion in group.completions]
    return Round(
        step,
        min(versions, default=0),
        groups,
        summary.get("cursor", 0),
        summary.get("counts", {}),
        summary.get("seconds", {}),
        read_work(summary.get("work", {})),
    )


def _summary(path: Path) -> dict[str, Any]:
    """What a round's summary says; {} where there is none. Raises DataError."""
    if not path.is_file():
        return {}
    fix = "copy it again, or delete the round's two files, then it is made again"
    summary = read_object(path, fix)
    kinds = {"cursor": int, "counts": dict, "seconds": dict, "work": dict}
    for name, kind in kinds.items():
        if not isinstance(summary.get(name, kind()), kind):
            raise DataError(f"{path}: {name} is no {kind.__name__}; fix: {fix}")
    return summary


def stored_steps(folder: Path) -> list[int]:
    """Steps whose rollouts lie in a folder, ascending."""
    names = [
        path.name.removeprefix("step_").removesuffix(".jsonl")
        for path in folder.glob("step_*.jsonl")
    ]
    return sorted(int(name) for name in names if name.isdigit())


def remove_after(folder: Path, step: int) -> None:
    """Deletes the rounds above `step`: they were sampled by weights that no longer exist."""
    for stale in stored_steps(folder):
        if stale > step:
            summary_file(folder, stale).unlink(missing_ok=True)
            rollouts_file(folder, stale).unlink()


def _rows(found: Round) -> list[dict[str, Any]]:
    rows = []
    for number, group in enumerate(found.groups):
        prompt = group.problem.prompt_text or "\n\n".join(
            message.content for message in group.problem.prompt
        )
        for sample, completion in enumerate(group.completions):
            graded = group.graded[sample] if group.graded else None
            rows.append(
                {
                    "step": found.step,
                    "group": number,
                    "sample": sample,
                    "id": group.problem.id,
                    "prompt": prompt,
                    "completion": completion.text,
                    "gold": group.problem.gold,
                    "kind": group.problem.kind,
                    "answer": graded.answer if graded else None,
                    "correct": graded.correct if graded else None,
                    "grade_reason": graded.reason.value if graded else None,
                    "reward": group.rewards[sample],
                    "reward_terms": group.reward_terms[sample],
                    "advantage": group.advantages[sample],
                    "version": completion.policy_version,
                    "finish_reason": completion.finish_reason.value,
                    "num_tokens": len(completion.token_ids),
                    "prompt_ids": group.prompt_ids,
                    "response_ids": completion.token_ids,
                    "logprobs": completion.logprobs,
                    **_experts(completion),
                }
            )
    return rows


def _experts(completion: Completion) -> dict[str, str]:
    return {"routed_experts": completion.routed_experts} if completion.routed_experts else {}


def _experts_of(row: Mapping[str, Any]) -> str:
    text = row.get("routed_experts", "")
    if not isinstance(text, str):
        raise TypeError(f"routed_experts is no text but {str(text)[:40]}")
    return text


def _group(path: Path, numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> RolloutGroup:
    where = f"{path}:{numbered[0][0]}"
    rows = [row for _, row in numbered]
    try:
        first = rows[0]
        problem = Problem(
            first["id"], (Message("user", first["prompt"]),), first["gold"], first["kind"]
        )
        completions = tuple(
            Completion(
                tuple(row["response_ids"]),
                row["completion"],
                FinishReason(row["finish_reason"]),
                tuple(row["logprobs"]),
                row["version"],
                _experts_of(row),
            )
            for row in rows
        )
        graded = tuple(
            Graded(row["correct"], row["answer"], GradeReason(row["grade_reason"]))
            for row in rows
            if row["grade_reason"]
        )
        return RolloutGroup(
            problem,
            tuple(first["prompt_ids"]),
            completions,
            tuple(row["reward"] for row in rows),
            tuple(row["reward_terms"] for row in rows),
            graded,
            tuple(row["advantage"] for row in rows),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected a completion of a GRPO run, found {type(error).__name__}: {error}; "
            "fix: a rollouts/step_N.jsonl that a run wrote"
        ) from None
