"""s1's procedure on a pool built to the edges of every rule: exact rows at each stage, seeds, file
order, and the laws of the draws."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from megaladder.config.verbs.data import SelectConfig
from megaladder.curate.select.diversity import Diverse, DomainCounts, benchmark_weights
from megaladder.curate.select.pool import Context, PoolRow
from megaladder.curate.select.run import run_select

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
GOOD = {
    "question": "plain",
    "source_type": "AI-MO/NuminaMath-CoT/olympiads",
    "domain": "11",
    "isqwen7bcorrect": False,
    "isqwen32bcorrect": False,
    "isgeminicorrect": False,
    "gemini_length": 1000,
}
# id → (what differs from GOOD, the stage that drops it or None)
EDGES = {
    "no_domain": ({"domain": None}, "1 drop_missing"),
    "no_grade": ({"isqwen7bcorrect": None}, "1 drop_missing"),
    "no_length": ({"gemini_length": None}, "1 drop_missing"),
    "asy": ({"question": "see [asy] draw(); [/asy]"}, "2 drop"),
    "asy_aime": (
        {"question": "see [asy] draw(); [/asy]", "source_type": "qq8933/AIME_1983_2024"},
        None,
    ),
    "image": ({"question": "look ![Image](x.png)"}, "2 drop"),
    "image_aime": (
        {"question": "look ![Image](x.png)", "source_type": "qq8933/AIME_1983_2024"},
        "2 drop",
    ),
    "page_0": ({"question": "from p0. on"}, "2 drop"),
    "page_999": ({"question": "p999. Find"}, "2 drop"),
    "page_1000": ({"question": "p1000. Find"}, None),
    "page_no_dot": ({"question": "p12 Find"}, None),
    "page_leading_zero": ({"question": "p012. Find"}, None),
    "bold_number": ({"question": "**12.** Find"}, "2 drop"),
    "bold_word": ({"question": "**Find** it"}, None),
    "bold_word_then_number": (
        {"question": "**Find** 12"},
        "2 drop",
    ),  # the published look-ahead reaches to the end of the line
    "bold_with_blank": ({"question": "**Part 1** Find"}, None),
    "bold_bracket": ({"question": "**a]1** Find"}, None),
    "qwen7": ({"isqwen7bcorrect": True}, "3 drop"),
    "qwen32": ({"isqwen32bcorrect": True}, "3 drop"),
    "plain": ({}, None),
}
PRESELECTED = {
    "pre_gpqa": {"source_type": "Idavidrein/gpqa", "isgeminicorrect": True, "gemini_length": 10},
    "pre_aime": {"source_type": "qq8933/AIME_1983_2024", "isgeminicorrect": True},
    "pre_openai": {
        "source_type": "simplescaling/openaimath/algebra",
        "isgeminicorrect": True,
        "gemini_length": 5601,
    },
}
NOT_PRESELECTED = {
    "no_gpqa": {"source_type": "Idavidrein/gpqa", "isgeminicorrect": False},
    "no_openai": {
        "source_type": "simplescaling/openaimath/algebra",
        "isgeminicorrect": True,
        "gemini_length": 5600,
    },
    "no_other": {"isgeminicorrect": True, "gemini_length": 99999},
}


def pool(num_plain: int = 0) -> list[dict]:
    rows = [{"id": name, **GOOD, **change} for name, (change, _) in EDGES.items()]
    rows += [
        {"id": name, **GOOD, **change}
        for name, change in {**PRESELECTED, **NOT_PRESELECTED}.items()
    ]
    rng = random.Random(1)
    for i in range(num_plain):
        rows.append(
            {
                "id": f"r{i:05d}",
                **GOOD,
                "domain": str(rng.randrange(51)),
                "gemini_length": rng.randrange(1000, 20000),
            }
        )
    return rows


def run(
    tmp_path: Path,
    rows: list[dict],
    recipe: str,
    *sets: str,
    seed=None,
    name: str = "out",
    workers: int = 1,
):
    source = tmp_path / f"{name}.in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / f"{name}.jsonl"
    run_select(
        SelectConfig(
            path=str(source),
            recipe=str(RECIPES / recipe),
            out=str(out),
            set=sets,
            seed=seed,
            workers=workers,
        )
    )
    selected = [json.loads(line) for line in out.read_text().splitlines()]
    dropped = {
        row["id"]: row
        for row in map(json.loads, Path(f"{out}.dropped.jsonl").read_text().splitlines())
    }
    return selected, dropped, json.loads(Path(f"{out}.stages.json").read_text())


def test_every_edge_goes_where_the_rules_say(tmp_path) -> None:
    num_kept = (
        sum(stage is None for _, stage in EDGES.values()) + len(PRESELECTED) + len(NOT_PRESELECTED)
    )
    selected, dropped, stages = run(tmp_path, pool(), "s1/s1k.yaml", f"n={num_kept}")
    assert {row["id"] for row in selected} == {
        name for name, (_, stage) in EDGES.items() if stage is None
    } | PRESELECTED.keys() | NOT_PRESELECTED.keys()
    assert {name: row["stage"] for name, row in dropped.items()} == {
        name: stage for name, (_, stage) in EDGES.items() if stage
    }
    total = len(EDGES) + 6
    assert [stage["rows_out"] for stage in stages["stages"]] == [
        total - 3,
        total - 10,
        total - 12,
        total - 12,
        num_kept,
    ]
    assert stages["stages"][0]["dropped"] == {
        "no domain": 1,
        "no gemini_length": 1,
        "no isqwen7bcorrect": 1,
    }
    assert stages["stages"][3]["notes"] == {"marked": 3}
    assert [stage["published"] for stage in stages["stages"]] == [54116, 51607, 24517, None, 1000]
    assert all("preselected" not in row for row in selected), "marks are not written"


def test_same_seed_same_thousand_another_seed_another_shuffled_input_the_same(tmp_path) -> None:
    rows = pool(4000)
    selected, _, stages = run(tmp_path, rows, "s1/s1k.yaml", name="a")
    again, _, _ = run(tmp_path, rows, "s1/s1k.yaml", name="b")
    random.Random(5).shuffle(rows)
    shuffled, _, shuffled_stages = run(tmp_path, rows, "s1/s1k.yaml", name="c", workers=2)
    other, _, _ = run(tmp_path, rows, "s1/s1k.yaml", seed=7, name="d")
    assert len(selected) == 1000
    assert selected == again == shuffled, "also in the same order"
    assert stages["ids_sha256"] == shuffled_stages["ids_sha256"]
    assert {row["id"] for row in selected} != {row["id"] for row in other}
    assert PRESELECTED.keys() <= {row["id"] for row in selected}
    notes = stages["stages"][4]["notes"]
    assert (notes["preselected"], notes["uniform"] + notes["weighted"]) == (3, 997)
    assert notes["uniform"] == 697 + notes["weighted_exhausted"]


def test_columns_pass_through_untouched(tmp_path) -> None:
    rows = [{**row, "cot": None, "extra": {"α": [1, 2.5, None]}} for row in pool(0)]
    selected, _, _ = run(tmp_path, rows, "s1/s1k.yaml", "n=5")
    by_id = {row["id"]: row for row in rows}
    assert all(row == by_id[row["id"]] for row in selected)


def context(rows: list[PoolRow], seed: int = 0) -> Context:
    return Context("pool.jsonl", seed, "stage 1 (diverse) of test.yaml", "diverse#1", rows)


def domain_rows(sizes: dict[str, int]) -> list[PoolRow]:
    """Per domain rows whose id says the rank by length: 0 = longest."""
    return [
        PoolRow(
            f"{domain}/{rank:03d}", 0, "pool.jsonl:1", {"domain": domain, "length": 1000 - rank}
        )
        for domain, size in sorted(sizes.items())
        for rank in range(size)
    ]


def test_inside_a_domain_ranks_are_drawn_with_two_to_the_minus_rank() -> None:
    rows = domain_rows({"a": 6})
    stage = Diverse(n=1)
    counts = Counter(stage.apply(rows, context(rows, seed)).kept[0].id for seed in range(4000))
    expected = [2.0**-rank / sum(2.0**-r for r in range(6)) for rank in range(6)]
    for rank, share in enumerate(expected):
        assert counts[f"a/{rank:03d}"] / 4000 == pytest.approx(share, abs=0.025)


def test_domains_are_drawn_uniformly_then_by_benchmark_weight() -> None:
    rows = domain_rows({"a": 400, "b": 400, "c": 400})
    stage = Diverse(n=300, uniform_until=150, aime=DomainCounts(counts={"a": 3, "b": 1}))
    outcome = stage.apply(rows, context(rows))
    assert outcome.notes == {
        "preselected": 0,
        "domains": 3,
        "uniform": 150,
        "weighted": 150,
        "weighted_exhausted": 0,
    }
    counts = Counter(row.values["domain"] for row in outcome.kept)
    assert 30 <= counts["c"] <= 70, "only in the uniform half"
    assert counts["a"] - counts["b"] >= 40, "3 : 1 in the weighted half"


def test_benchmark_weights_are_the_published_formula() -> None:
    """int(gpqa × 0.5 · Σaime / Σgpqa) + aime, with Σgpqa = 198, Σaime = 90: factor 0.2272…"""
    gpqa, aime = (
        DomainCounts(counts={"81": 100, "20": 90, "51": 8}),
        DomainCounts(counts={"11": 60, "05": 26, "20": 4}),
    )
    assert benchmark_weights(gpqa, aime, context([]), "domain") == {
        "05": 26,
        "11": 60,
        "20": 20 + 4,
        "51": 1,
        "81": 22,
    }


def test_used_up_domains_leave_the_draw() -> None:
    rows = domain_rows({"a": 2, "b": 30})
    stage = Diverse(n=20, uniform_until=4, aime=DomainCounts(counts={"a": 1}))
    outcome = stage.apply(rows, context(rows))
    assert len(outcome.kept) == 20
    assert outcome.notes["weighted_exhausted"] > 0, (
        "domain a has two rows, then the draw goes on with the others"
    )


@pytest.mark.parametrize(
    ("recipe", "check"), [("random", None), ("diverse", "spread"), ("longest", "longest")]
)
def test_ablations(tmp_path, recipe: str, check: str | None) -> None:
    rows = pool(3000)
    selected, _, stages = run(tmp_path, rows, f"s1/s1k_{recipe}.yaml", "n=200")
    assert len(selected) == 200
    assert [entry["rows_out"] for entry in stages["stages"]][1] == 3000 + len(EDGES) + 6 - 10, (
        "quality only, no difficulty"
    )
    if check == "longest":
        lengths = sorted(
            (row["gemini_length"] for row in rows if row["gemini_length"] is not None), reverse=True
        )
        assert sorted((row["gemini_length"] for row in selected), reverse=True) == lengths[:200]
    if check == "spread":
        counts = Counter(row["domain"] for row in selected)
        assert len(counts) == 51
        assert max(counts.values()) <= 12


def test_full_keeps_everything(tmp_path) -> None:
    selected, dropped, _ = run(tmp_path, pool(10), "s1/s1k_full.yaml")
    assert len(selected) == len(EDGES) + 6 + 10
    assert dropped == {}
