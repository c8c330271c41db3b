"""Do the programs of all ranks fit together? Three questions, each answered with the first fault.

1. Ranks that differ only in their tensor, context or data parallel place must ask the same of the
   same communicators in the same order: `differences`.
2. What one stage sends the other receives, in order and size: part of `run_together`.
3. The step ends: one rank a stage is run against the others by the rules of NCCL. Work on one
   communicator is done in order; transfers of one batch progress together; a collective needs all
   its members; a transfer is over when both sides have begun it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megaladder.dryrun.record import Event, Group
from megaladder.dryrun.step import RankProgram


def differences(reference: RankProgram, other: RankProgram) -> str | None:
    """The first place where two ranks of one stage ask for different things, see `_asked`."""
    for index, (left, right) in enumerate(zip(reference.events, other.events, strict=False)):
        together = other.rank in left.group.ranks
        if _asked(left, together) != _asked(right, together):
            return _differ(reference, other, index, str(left), str(right))
    index = min(len(reference.events), len(other.events))
    ends = [
        str(program.events[index]) if index < len(program.events) else "nothing more"
        for program in (reference, other)
    ]
    if ends[0] == ends[1]:
        return None
    return _differ(reference, other, index, *ends)


def _asked(event: Event, together: bool) -> tuple[object, ...]:
    """What has to be equal: everything in a communicator that both are in.

    Where each is in one of its own, bytes may follow the data (tokens with a loss), the order may
    not."""
    if together:
        return event.signature
    return (event.op, event.group.name, event.group.size, event.dtype, event.where)


def _differ(left: RankProgram, right: RankProgram, index: int, asks: str, asks_too: str) -> str:
    return (
        f"operation {index}: rank {left.rank} ({left.place}) asks for {asks}; rank {right.rank}"
        f" ({right.place}) asks for {asks_too}"
    )


@dataclass(slots=True)
class _Batch:
    """Transfers of a rank that start together: what it does on each of its channels."""

    events: list[Event] = field(default_factory=list)
    posted: bool = False
    over: bool = False


@dataclass(slots=True)
class _Rank:
    """Where a rank is in its program, and its transfers."""

    program: RankProgram
    position: int = 0
    batches: dict[int, _Batch] = field(default_factory=dict)
    # by communicator: transfers run in the order in which they were asked for
    queues: dict[Group, deque[int]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def event(self) -> Event | None:
        events = self.program.events
        return events[self.position] if self.position < len(events) else None

    def __str__(self) -> str:
        doing = self.event or "nothing more"
        return f"rank {self.program.rank} ({self.program.place}) at {self.position}: {doing}"


def run_together(programs: Sequence[RankProgram]) -> list[str]:
    """Runs one rank of each stage to the end.

    Returns what is wrong: transfers without partner or of another size, collectives that do not
    agree, and, when nobody can go on, what each rank waits for. Empty: all is well.
    """
    ranks = {program.rank: _Rank(program) for program in programs}
    faults = _unmatched(programs)
    while True:
        moved = [_advance(rank, ranks, faults) for rank in ranks.values()]
        if not any(moved):
            break
    stuck = [str(rank) for rank in ranks.values() if rank.event is not None]
    if stuck:
        faults.append("the step does not end; " + "; ".join(map(str, ranks.values())))
    return list(dict.fromkeys(faults))


def _unmatched(programs: Sequence[RankProgram]) -> list[str]:
    """Transfers by channel (sender, receiver, communicator).

    The n-th send meets the n-th receive."""
    sent: dict[tuple[int, int, Group], list[Event]] = defaultdict(list)
    received: dict[tuple[int, int, Group], list[Event]] = defaultdict(list)
    for program in programs:
        for event in program.events:
            if event.op == "send" and event.peer is not None:
                sent[program.rank, event.peer, event.group].append(event)
            elif event.op == "recv" and event.peer is not None:
                received[event.peer, program.rank, event.group].append(event)
    faults = []
    for channel in dict.fromkeys([*sent, *received]):
        sends, receives = sent[channel], received[channel]
        name = f"rank {channel[0]} → rank {channel[1]} in {channel[2].name}"
        for number, (send, receive) in enumerate(zip(sends, receives, strict=False)):
            if (send.dtype, send.num_bytes) != (receive.dtype, receive.num_bytes):
                faults.append(
                    f"{name}, transfer {number}: {send.num_bytes:,} B {send.dtype} are sent"
                    f" ({send.where}), {receive.num_bytes:,} B {receive.dtype} expected"
                    f" ({receive.where})"
                )
                break
        if len(sends) != len(receives):
            longer = max(sends, receives, key=len)[min(len(sends), len(receives))]
            faults.append(
                f"{name}: {len(sends)} sends meet {len(receives)} receives; the first without a"
                f" partner is the {longer.op} in {longer.where}"
            )
    return faults


def _advance(rank: _Rank, ranks: Mapping[int, _Rank], faults: list[str]) -> bool:
    """As far as this rank gets now; whether it moved."""
    began = rank.position
    while (event := rank.event) is not None:
        if event.is_transfer:
            _post(rank, event)
        elif event.op == "wait":
            if not _is_over(rank, event.batch, ranks):
                break
        elif not _meet(rank, event, ranks, faults):
            break
        rank.position += 1
    return rank.position > began


def _post(rank: _Rank, event: Event) -> None:
    assert event.batch is not None
    if event.batch not in rank.batches:
        rank.batches[event.batch] = _Batch()
        rank.queues[event.group].append(event.batch)
    rank.batches[event.batch].events.append(event)


def _begun(rank: _Rank, batch: int, group: Group, ranks: Mapping[int, _Rank]) -> bool:
    """Whether nothing stands before this batch on its communicator any more."""
    queue = rank.queues[group]
    while queue and queue[0] != batch and _all_met(rank, queue[0], ranks):
        rank.batches[queue.popleft()].over = True
    return not queue or queue[0] == batch or rank.batches[batch].over


def _is_over(rank: _Rank, batch: int | None, ranks: Mapping[int, _Rank]) -> bool:
    if batch is None:
        return True
    held = rank.batches[batch]
    if not held.over:
        group = held.events[0].group
        held.over = _begun(rank, batch, group, ranks) and _all_met(rank, batch, ranks)
    return held.over


def _all_met(rank: _Rank, batch: int, ranks: Mapping[int, _Rank]) -> bool:
    """Whether every transfer of the batch has met its partner.

    That stands at the head of its queue, or is over."""
    return all(_partner_begun(rank, event, ranks) for event in rank.batches[batch].events)


def _partner_begun(rank: _Rank, event: Event, ranks: Mapping[int, _Rank]) -> bool:
    other = ranks.get(event.peer if event.peer is not None else -1)
    if other is None:
        return True
    number = _number(rank, event)
    wanted = "recv" if event.op == "send" else "send"
    seen = -1
    for batch, held in other.batches.items():
        for candidate in held.events:
            same = candidate.group == event.group and candidate.peer == rank.program.rank
            seen += candidate.op == wanted and same
            if seen == number:
                queue = other.queues[event.group]
                return held.over or not queue or queue[0] == batch
    return False


def _number(rank: _Rank, event: Event) -> int:
    """How many transfers of this rank on the same channel come before `event`."""
    count = 0
    for held in rank.batches.values():
        for earlier in held.events:
            if earlier is event:
                return count
            same = earlier.group == event.group and earlier.peer == event.peer
            count += earlier.op == event.op and same
    return count


def _meet(rank: _Rank, event: Event, ranks: Mapping[int, _Rank], faults: list[str]) -> bool:
    """A collective: over when every member among `ranks` has come to its own, the same one."""
    members = [ranks[number] for number in event.group.ranks if number in ranks]
    if len(members) < 2:
        return True
    place = _occurrence(rank, event.group)
    for member in members:
        theirs = _nth(member, event.group, place)
        if theirs is None:
            return False
        if theirs[1].signature[:5] != event.signature[:5]:
            faults.append(
                f"collective {place} of {event.group.name}: {_said(rank, event)}, but"
                f" {_said(member, theirs[1])}"
            )
        if theirs[0] > member.position:
            return False
    return True


def _said(rank: _Rank, event: Event) -> str:
    return f"rank {rank.program.rank} ({rank.program.place}) asks for {event}"


def _occurrence(rank: _Rank, group: Group) -> int:
    """How many collectives of this communicator the rank has behind it."""
    past = rank.program.events[: rank.position]
    return sum(
        not event.is_transfer and event.op != "wait" and event.group == group for event in past
    )


def _nth(rank: _Rank, group: Group, number: int) -> tuple[int, Event] | None:
    seen = -1
    for position, event in enumerate(rank.program.events):
        seen += not event.is_transfer and event.op != "wait" and event.group == group
        if seen == number:
            return position, event
    return None
