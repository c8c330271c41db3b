"""LIMO's rule score against values computed by hand, quality levels, and the columns that the verb
writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError
from waiting import is_alive, wait_until

from megaladder.config.verbs.data import ScoreConfig
from megaladder.curate.score import (
    LimoRule,
    answer_text,
    keyword_counter,
    limo_parts,
    limo_scores,
    load_rule,
    quality_levels,
    run_score,
    style_features,
)
from megaladder.errors import DataError

RULE = LimoRule(
    verification="check verify", exploration="perhaps might", granularity="therefore since"
)
TEXTS = [
    # 10 words: 2 verify, 1 explore, 1 connect
    "check verify perhaps therefore one two three four five six",
    (
        "one two three four perhaps might perhaps since therefore nine ten eleven twelve thirteen"
        " fourteen fifteen sixteen seventeen x y"
    ),
    "one two three four five",  # 5 words, none
]


def test_parts_are_words_and_rates() -> None:
    parts = [limo_parts(text, RULE) for text in TEXTS]
    assert parts == [
        (10.0, 2 / 10, 1 / 10, 1 / 10),
        (20.0, 0.0, 3 / 20, 2 / 20),
        (5.0, 0.0, 0.0, 0.0),
    ]


def test_score_by_hand_minmax() -> None:
    """Elaboration (5…20): 1/3, 1, 0; verification (0…0.2): 1, 0, 0; exploration (0…0.15): 2/3, 1,
    0; granularity (0…0.1): 1, 1, 0."""
    scores = limo_scores([limo_parts(text, RULE) for text in TEXTS], RULE)
    assert [entry["score"] for entry in scores] == pytest.approx(
        [0.30 / 3 + 0.20 + 0.25 * 2 / 3 + 0.25, 0.30 + 0.25 + 0.25, 0.0]
    )
    assert scores[0]["exploration"] == pytest.approx(2 / 3)


def test_score_by_hand_rank_and_per_1k() -> None:
    ranked = limo_scores(
        [limo_parts(text, RULE) for text in TEXTS], RULE.model_copy(update={"normaliser": "rank"})
    )
    # ranks 0…2 over 2; equal values share their mean rank: verification 1, 0.25, 0.25 and
    # granularity 0.75, 0.75, 0
    assert [entry["score"] for entry in ranked] == pytest.approx(
        [
            0.30 * 0.5 + 0.20 + 0.25 * 0.5 + 0.25 * 0.75,
            0.30 + 0.20 * 0.25 + 0.25 + 0.25 * 0.75,
            0.20 * 0.25,
        ]
    )
    full = {"elaboration": 20, "verification": 400, "exploration": 100, "granularity": 200}
    absolute = limo_scores(
        [limo_parts(text, RULE) for text in TEXTS],
        RULE.model_copy(update={"normaliser": "per_1k", "full": full}),
    )
    assert [entry["score"] for entry in absolute] == pytest.approx(
        [
            0.30 * 0.5 + 0.20 * 0.5 + 0.25 * 1.0 + 0.25 * 0.5,
            0.30 + 0.25 * 1.0 + 0.25 * 0.5,
            0.30 * 0.25,
        ]
    )


def test_equal_texts_score_equal_and_a_constant_measure_is_zero() -> None:
    scores = limo_scores([limo_parts(TEXTS[0], RULE)] * 3, RULE)
    assert [entry["score"] for entry in scores] == [0.0, 0.0, 0.0]


def test_keywords_are_whole_words_in_any_case_and_phrases_count() -> None:
    count = keyword_counter("check; let me see")
    assert count("Check CHECK checked unchecked".lower().split()) == 2
    assert count(["let", "me", "see", "let", "me", "see", "but", "let", "see"]) == 2
    features = style_features("Wait, let me check: maybe 2, since 1+1 = 2. Go back? No.")
    assert features == {
        "num_words": 13,
        "num_characters": 56,
        "num_verification": 1,
        "num_backtracking": 2,
        "num_exploration": 1,
        "num_connectives": 1,
    }


def test_levels_are_equal_bands_and_ties_share_the_lower_one() -> None:
    assert quality_levels([i / 10 for i in range(10)], 5) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert quality_levels([0.5] * 4, 5) == [1, 1, 1, 1]
    assert quality_levels([3, 1, 2, 2], 2) == [2, 1, 1, 1]


def test_the_shipped_rule_file_is_the_default_rule() -> None:
    assert load_rule("examples/recipes/limo/score.yaml") == LimoRule()
    assert LimoRule().weights == {
        "elaboration": 0.30,
        "verification": 0.20,
        "exploration": 0.25,
        "granularity": 0.25,
    }


def test_a_rule_that_cannot_work_is_told() -> None:
    with pytest.raises(ValidationError, match=r"sum to 0\.9"):
        LimoRule(
            weights={
                "elaboration": 0.2,
                "verification": 0.2,
                "exploration": 0.25,
                "granularity": 0.25,
            }
        )
    with pytest.raises(ValidationError, match="expected elaboration"):
        LimoRule(weights={"length": 1.0})


def test_answers_are_found_in_every_schema() -> None:
    for row in (
        {"solution": "S"},
        {"response": "S"},
        {"thinking_trajectories": ["S"]},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "S"}]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "S"}]},
    ):
        assert answer_text(row, None, "x:1") == "S"
    with pytest.raises(DataError, match="x:1: expected text in column 'trace'"):
        answer_text({"solution": "S"}, "trace", "x:1")


def test_the_verb_adds_columns_and_does_not_depend_on_workers(tmp_path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "solution": text}) + "\n" for i, text in enumerate(TEXTS * 40))
    )
    for workers in (1, 2):
        run_score(
            ScoreConfig(
                path=str(path), out=str(tmp_path / f"{workers}.jsonl"), levels=5, workers=workers
            )
        )
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["id", "solution", "score", "score_parts", "style", "level"]
    assert [rows[i]["level"] for i in range(3)] == [
        quality_levels([row["score"] for row in rows], 5)[i] for i in range(3)
    ]
    with pytest.raises(DataError, match="column 'score' is there already"):
        run_score(ScoreConfig(path=str(tmp_path / "1.jsonl"), out=str(tmp_path / "3.jsonl")))


def test_workers_end_with_a_killed_parent() -> None:
    """Each of them holds the other end of the queue that it waits at."""
    script = """
import itertools, multiprocessing, signal
from megaladder.curate.score import map_ordered
found = map_ordered(str, itertools.count(), 2)
next(found)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_alive, workers)), "the end of the workers")
