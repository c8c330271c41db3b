r"""Countdown with search traces: use each number once to reach the target.

The trace tries, checks and goes back, as a person would.

A row is a pure function of (spec, seed, position). The search is a real depth-first search: at each
state it tries a few operations, the most promising first, and one operation that is known to lead
to the target; a state with two numbers left is checked completely. "Go back" therefore means "none
of what I tried here works", never a proof that nothing does. `check.py` replays every trace.
With `bare_share`, that share of the rows (from row `bare_from` on) boxes the target itself, without
any work: no solution, yet equal to it in value. A reward that compares values pays for that habit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from megaladder.curate.make.split import is_test_question, question_id
from megaladder.errors import DataError

MAX_REPEATS = 20_000


@dataclass(frozen=True)
class CountdownSpec:
    """How hard the puzzles are. All intermediate results are whole numbers ≥ 1.

    >>> CountdownSpec(numbers=4, largest=50, breadth=2)    # doctest: +ELLIPSIS
    CountdownSpec(numbers=4, largest=50, ...
    """

    numbers: int = 4  # how many numbers each puzzle has
    largest: int = 99  # numbers are drawn from 1…largest
    max_target: int = 999
    breadth: int = 2  # wrong operations tried at a state before the right one, at most
    max_backtracks: int = 12  # a trace goes back at most this often
    min_backtracks: int = 0  # puzzles whose search went back less often are drawn again
    bare_share: float = 0.0  # of the rows, those that box the target and no expression
    bare_from: int = 0  # rows before this one all solve their puzzle

    def __post_init__(self) -> None:
        limits = {
            "numbers": (2, 8),
            "largest": (5, 10_000),
            "max_target": (10, 10**6),
            "breadth": (0, 8),
            "max_backtracks": (0, 500),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(
                    f"{name} {value} is outside {low}…{high}; fix: a number in that range"
                )
        if not 0 <= self.min_backtracks <= self.max_backtracks:
            raise DataError(
                f"min_backtracks {self.min_backtracks} is outside 0…max_backtracks"
                f" {self.max_backtracks}; fix: one of the two"
            )
        if not 0 <= self.bare_share <= 1:
            raise DataError(
                f"bare_share {self.bare_share} is outside 0…1; fix: a number in that range"
            )


class Move(NamedTuple):
    """`left operation right = value`; the operands leave the state, the value joins it."""

    left: int
    operation: str
    right: int
    value: int


@dataclass
class _Search:
    """One trace being written.

    `plan` is the known way to the target, used as long as the search is on it."""

    spec: CountdownSpec
    rng: random.Random
    target: int
    lines: list[str] = field(default_factory=list)
    tries: int = 0
    backtracks: int = 0

    def solve(self, state: list[int], depth: int, plan: tuple[Move, ...]) -> list[Move] | None:
        """Writes the search below `state`.

        Returns the moves to the target, None if nothing that was tried leads there."""
        if len(state) == 2:
            return self._last_two(state, depth)
        for move in self._candidates(state, plan):
            is_planned = bool(plan) and move == plan[0]
            if not is_planned and self.backtracks >= self.spec.max_backtracks:
                continue
            rest = after(state, move)
            self.tries += 1
            self.lines.append(f"{'  ' * depth}Try {show(move)}. Left: {', '.join(map(str, rest))}.")
            found = self.solve(rest, depth + 1, plan[1:] if is_planned else ())
            if found is not None:
                return [move, *found]
            self.backtracks += 1
            self.lines.append(f"{'  ' * (depth + 1)}Go back.")
        return None

    def _last_two(self, state: list[int], depth: int) -> list[Move] | None:
        """All results of two numbers, in a seeded order, up to the one that is the target."""
        checked: list[str] = []
        moves = legal_moves(state)
        self.rng.shuffle(moves)
        for move in moves:
            self.tries += 1
            if move.value == self.target:
                self.lines.append(
                    f"{'  ' * depth}Check {'; '.join([*checked, show(move)])}: that is"
                    f" {self.target}."
                )
                return [move]
            checked.append(show(move))
        self.lines.append(f"{'  ' * depth}Check {'; '.join(checked)}: none is {self.target}.")
        return None

    def _candidates(self, state: list[int], plan: tuple[Move, ...]) -> list[Move]:
        """A few promising moves.

        The planned one is among them when there is a plan, at a seeded place."""
        width = self.rng.randint(0, self.spec.breadth) if plan else self.spec.breadth
        moves = [move for move in dict.fromkeys(legal_moves(state)) if not plan or move != plan[0]]
        scored = sorted(
            (abs(move.value - self.target) * self.rng.uniform(0.5, 2.0), index)
            for index, move in enumerate(moves)
        )
        chosen = [moves[index] for _, index in scored[:width]]
        return [*chosen, plan[0]] if plan else chosen


def countdown_rows(
    spec: CountdownSpec, num_rows: int, seed: int, test: bool = False
) -> Iterator[dict[str, Any]]:
    """`num_rows` different puzzles of one half of the split, in a seeded order.

    Row: `id, question, gold, messages`, the puzzle (`numbers, target`; `gold` is the target),
    `worked` (false: it boxes the bare target) and the measures `tries, backtracks` of the search.
    Raises DataError when the spec has fewer puzzles than asked for.
    """
    rng = random.Random(f"countdown/{seed}/{test}")
    seen: set[str] = set()
    repeats = 0
    while len(seen) < num_rows:
        row = _draw(spec, rng, seen, test)
        if row is None:
            repeats += 1
            if repeats > MAX_REPEATS:
                raise DataError(
                    f"only {len(seen):,} different {'test' if test else 'training'} puzzles found,"
                    f" {num_rows:,} wanted (numbers {spec.numbers}, largest {spec.largest},"
                    f" min_backtracks {spec.min_backtracks}); fix: fewer rows or a wider spec"
                )
            continue
        repeats = 0
        seen.add(row["question"])
        # its own draw: the puzzles stay the same whatever the share
        style = random.Random(f"style/{seed}/{row['question']}").random()
        is_bare = style < spec.bare_share and len(seen) > spec.bare_from
        yield _bare(row) if is_bare else row


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the target itself as its answer."""
    user, assistant = row["messages"]
    answer = {**assistant, "content": f"<think>\n\n</think>\n\n\\boxed{{{row['target']}}}"}
    return {**row, "messages": [user, answer], "worked": False, "tries": 0, "backtracks": 0}


def _draw(
    spec: CountdownSpec, rng: random.Random, seen: set[str], test: bool
) -> dict[str, Any] | None:
    """One puzzle with its trace.

    None when this draw is no use (target out of range, seen, other half of the split, too easy)."""
    numbers = [rng.randint(1, spec.largest) for _ in range(spec.numbers)]
    plan, target = _random_plan(numbers, rng)
    if not 10 <= target <= spec.max_target or target in numbers:
        return None
    question = (
        f"Use each of the numbers {', '.join(map(str, sorted(numbers)))} exactly once, with + - *"
        f" /, to make {target}."
    )
    if question in seen or is_test_question(question) != test:
        return None
    search = _Search(spec, rng, target)
    moves = search.solve(sorted(numbers), 0, plan)
    assert moves is not None, f"the planned way was not followed: {numbers} → {target}"
    if search.backtracks < spec.min_backtracks:
        return None
    trace = "\n".join(
        [f"Numbers {', '.join(map(str, sorted(numbers)))}; target {target}.", *search.lines]
    )
    answer = f"<think>\n{trace}\n</think>\n\n\\boxed{{{expression(numbers, moves)}}}"
    return {
        "id": question_id("countdown", question),
        "question": question,
        "gold": str(target),
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "numbers": sorted(numbers),
        "target": target,
        "worked": True,
        "tries": search.tries,
        "backtracks": search.backtracks,
    }


def _random_plan(numbers: list[int], rng: random.Random) -> tuple[tuple[Move, ...], int]:
    """A random way to combine all numbers, and where it ends."""
    state, plan = list(numbers), []
    while len(state) > 1:
        left, right = rng.sample(state, 2)
        moves = legal_moves([left, right])
        plan.append(rng.choice(moves))
        state = after(state, plan[-1])
    return tuple(plan), state[0]


def legal_moves(state: list[int]) -> list[Move]:
    """Every pair and operation with a whole result ≥ 1.

    Sums and products once a pair, larger operand first.

    >>> [show(move) for move in legal_moves([3, 6])]
    ['6 + 3 = 9', '6 * 3 = 18', '6 - 3 = 3', '6 / 3 = 2']
    """
    moves = []
    for i in range(len(state)):
        for j in range(i + 1, len(state)):
            large, small = max(state[i], state[j]), min(state[i], state[j])
            moves += [
                Move(large, "+", small, large + small),
                Move(large, "*", small, large * small),
            ]
            if large > small:
                moves.append(Move(large, "-", small, large - small))
            if large % small == 0:
                moves.append(Move(large, "/", small, large // small))
    return moves


def after(state: list[int], move: Move) -> list[int]:
    """The state once the move is made, sorted."""
    rest = list(state)
    rest.remove(move.left)
    rest.remove(move.right)
    return sorted([*rest, move.value])


def show(move: Move) -> str:
    return f"{move.left} {move.operation} {move.right} = {move.value}"


def expression(numbers: list[int], moves: list[Move]) -> str:
    """The moves as one bracketed expression over the numbers.

    >>> expression([2, 3, 5], [Move(5, "-", 2, 3), Move(3, "*", 3, 9)])
    '3 * (5 - 2)'
    """
    terms = [(number, str(number)) for number in sorted(numbers)]

    def take(value: int) -> str:
        index = next(i for i, (v, _) in enumerate(terms) if v == value)
        text = terms.pop(index)[1]
        return f"({text})" if " " in text else text

    for move in moves:
        left, right = take(move.left), take(move.right)
        terms.append((move.value, f"{left} {move.operation} {right}"))
    return terms[0][1]
