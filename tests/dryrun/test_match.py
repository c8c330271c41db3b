"""What a schedule may get wrong, on programs written by hand: each mistake is found and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megaladder.dryrun.match import differences, run_together
from megaladder.dryrun.memory import HeldBytes
from megaladder.dryrun.record import Event, Group
from megaladder.dryrun.step import RankProgram
from megaladder.dryrun.world import Place

PIPELINE, WORLD = Group("pipeline_model_parallel", (0, 4)), Group("world", tuple(range(8)))
BYTES = HeldBytes(0, 0, 0, 0, 0)


def program(stage: int, *events: Event) -> RankProgram:
    return RankProgram(Place(pp=stage), 4 * stage, events, BYTES)


def moved(op: str, batch: int, peer: int, num_bytes: int = 8, where: str = "forward 0") -> Event:
    return Event(op, PIPELINE, "bfloat16", num_bytes, where, peer, batch)


def waits(batch: int) -> Event:
    return Event("wait", PIPELINE, where="forward 0", batch=batch)


def reduces(num_bytes: int = 4, op: str = "all_reduce sum") -> Event:
    return Event(op, WORLD, "float32", num_bytes, "update")


def test_two_stages_that_pass_a_tensor_on_and_meet_in_the_world() -> None:
    first = program(0, moved("send", 1, 4), waits(1), moved("recv", 2, 4), waits(2), reduces())
    last = program(1, moved("recv", 1, 0), waits(1), moved("send", 2, 0), waits(2), reduces())
    assert run_together([first, last]) == []


def test_a_receive_that_a_stage_skips_is_named() -> None:
    first = program(0, moved("send", 1, 4), moved("send", 2, 4, where="forward 1"), reduces())
    last = program(1, moved("recv", 1, 0), waits(1), reduces())
    (fault,) = run_together([first, last])
    assert "rank 0 → rank 4" in fault
    assert "2 sends meet 1 receives" in fault
    assert "send in forward 1" in fault


def test_a_transfer_of_another_size_is_named() -> None:
    first, last = program(0, moved("send", 1, 4, 8)), program(1, moved("recv", 1, 0, 16))
    (fault,) = run_together([first, last])
    assert "8 B bfloat16 are sent" in fault
    assert "16 B bfloat16 expected" in fault


def test_two_stages_that_both_receive_first_never_end() -> None:
    first = program(0, moved("recv", 1, 4), waits(1), moved("send", 2, 4), waits(2))
    last = program(1, moved("recv", 1, 0), waits(1), moved("send", 2, 0), waits(2))
    (fault,) = run_together([first, last])
    assert fault.startswith("the step does not end; rank 0 (pp 0")
    # in one batch the two directions progress together
    together = [
        program(stage, moved("recv", 1, peer), moved("send", 1, peer), waits(1))
        for stage, peer in ((0, 4), (1, 0))
    ]
    assert run_together(together) == []


def test_a_transfer_waits_for_the_ones_before_it_on_its_communicator() -> None:
    """Both send before they receive, in transfers of their own: NCCL does them in order."""
    ranks = [
        program(stage, moved("send", 1, peer), moved("recv", 2, peer), waits(2), waits(1))
        for stage, peer in ((0, 4), (1, 0))
    ]
    (fault,) = run_together(ranks)
    assert "does not end" in fault


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (reduces(8), "8 B float32"),
        (reduces(op="all_reduce max"), "all_reduce max"),
        (replace(reduces(), dtype="bfloat16"), "4 B bfloat16"),
    ],
)
def test_collectives_that_disagree_are_named(other: Event, words: str) -> None:
    faults = run_together([program(0, reduces()), program(1, other)])
    assert faults
    assert words in faults[0]
    assert "rank 0 (pp 0" in faults[0]
    assert "rank 4 (pp 1" in faults[0]


def test_a_collective_that_one_stage_never_comes_to() -> None:
    (fault,) = run_together([program(0, reduces(), reduces()), program(1, reduces())])
    assert "rank 0 (pp 0 dp 0 cp 0 tp 0) at 1: all_reduce sum" in fault
    assert "nothing more" in fault


def test_ranks_of_one_stage_are_compared_operation_by_operation() -> None:
    tensor = Group("tensor_model_parallel", (0, 1))
    gather, scatter = (Event(op, tensor, "bfloat16", 8) for op in ("all_gather", "reduce_scatter"))
    first = program(0, gather, scatter)
    swapped = replace(first, place=Place(tp=1), rank=1, events=(scatter, gather))
    assert differences(first, replace(first, rank=1)) is None
    found = differences(first, swapped)
    assert found is not None
    assert found.startswith("operation 0: rank 0 (pp 0 dp 0 cp 0 tp 0) asks for all_gather")
    assert "rank 1 (pp 0 dp 0 cp 0 tp 1) asks for reduce_scatter" in found
    apart = replace(first, rank=2, events=(replace(gather, num_bytes=16), scatter))
    assert differences(first, apart) is None  # of another tensor parallel group: its own tokens
    assert differences(first, replace(apart, rank=1)) is not None
    shorter = differences(first, replace(swapped, events=(gather,)))
    assert shorter is not None
    assert shorter.startswith("operation 1")
    assert shorter.endswith("asks for nothing more")
