"""Every published number whose inputs are published, and the committed table of them."""

from __future__ import annotations

import json

import pytest

from megaladder.analysis.studies.tiers import AIME24_ANSWERS, AIME24_TIERS, published_aime24
from megaladder.tools import reproduce_published


@pytest.mark.parametrize("check", reproduce_published.all_checks(), ids=lambda check: check.what)
def test_number(check):
    if check.paper_off:
        assert not check.ok, "the paper's table agrees with its own rows now"
        assert check.ours == pytest.approx(32.225)
    else:
        assert check.ok, f"published {check.published}, ours {check.ours}"


def test_the_committed_table_is_current(repository, capsys):
    assert reproduce_published.main() == 0
    assert capsys.readouterr().out == (repository / "docs" / "published_numbers.md").read_text(
        encoding="utf-8"
    ), "fix: run the tool again"


def test_aime24_answers_and_tiers_fit_the_real_file(shared_data):
    rows = [
        json.loads(line)
        for line in (shared_data / "aime24" / "test.jsonl").read_text().splitlines()
    ]
    assert {row["id"]: int(row["answer"]) for row in rows} == AIME24_ANSWERS
    table = published_aime24()
    for tier, ids in AIME24_TIERS.items():
        # so a gold answer alone decides the tier
        assert {table.by_gold[str(AIME24_ANSWERS[number])] for number in ids} == {tier}
