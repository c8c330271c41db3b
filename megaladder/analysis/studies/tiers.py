"""Difficulty tiers, published and built from accuracies.

The published AIME24 partition (Sun et al., arXiv 2504.11741) and its construction. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megaladder.analysis.samples.sets import ProblemSamples

TIERS = ("easy", "medium", "hard", "exhard")
AIME24_TIERS: dict[str, tuple[int, ...]] = {  # ids of AI-MO/aimo-validation-aime
    "easy": (69, 60, 67, 72),
    "medium": (84, 71, 68, 75, 86, 66, 83, 78, 79, 82),
    "hard": (70, 74, 76, 77, 87, 85, 64, 65, 80, 61, 88, 73),
    "exhard": (89, 62, 81, 63),
}
AIME24_ANSWERS: dict[int, int] = dict(
    zip(
        range(60, 90),
        (
            204,
            113,
            371,
            385,
            110,
            104,
            721,
            25,
            809,
            116,
            104,
            294,
            540,
            197,
            480,  # 60–74: 2024 I
            73,
            468,
            601,
            23,
            321,
            211,
            315,
            236,
            45,
            33,
            80,
            55,
            699,
            127,
            902,  # 75–89: 2024 II
        ),
        strict=True,
    )
)
EASY_ABOVE, MEDIUM_ABOVE, EXHARD_BELOW = 0.5, 0.5, 0.1


@dataclass(frozen=True, slots=True)
class TierTable:
    """Problem id (as text) → tier.

    `by_gold` serves files whose ids are not the published ones: gold answer → tier."""

    by_id: dict[str, str]
    by_gold: dict[str, str]

    def tier_of(self, problem: ProblemSamples) -> str | None:
        """The tier that the id names, else the gold answer.

        The only doubled AIME24 answer, 104, is hard twice."""
        return self.by_id.get(problem.id) or self.by_gold.get(
            (problem.gold or "").strip().lstrip("0")
        )


def published_aime24() -> TierTable:
    """The published partition."""
    by_id = {str(number): tier for tier, numbers in AIME24_TIERS.items() for number in numbers}
    return TierTable(
        by_id, {str(AIME24_ANSWERS[int(number)]): tier for number, tier in by_id.items()}
    )


def tiers(
    base_acc: Sequence[float],
    sft_accs: Sequence[Sequence[float]],
    all_accs: Sequence[Sequence[float]],
) -> list[str]:
    """Tier of each problem from accuracies in [0, 1]: base [P].

    Small-scale SFT models and all models [models][P].

    easy: base above 0.5; else medium: mean of the SFT models above 0.5; else exhard: every model
    below 0.1; else hard.
    """
    out = []
    for p, base in enumerate(base_acc):
        if base > EASY_ABOVE:
            out.append("easy")
        elif sum(acc[p] for acc in sft_accs) / len(sft_accs) > MEDIUM_ABOVE:
            out.append("medium")
        else:
            out.append("exhard" if all(acc[p] < EXHARD_BELOW for acc in all_accs) else "hard")
    return out


def constructed(
    accuracy: Mapping[str, Mapping[str, float]], base: str, sft: Sequence[str]
) -> TierTable:
    """`tiers` for `accuracy[model][problem id]`; every model must have every problem."""
    ids = list(accuracy[base])
    columns = {model: [values[key] for key in ids] for model, values in accuracy.items()}
    found = tiers(columns[base], [columns[model] for model in sft], list(columns.values()))
    return TierTable(dict(zip(ids, found, strict=True)), {})
