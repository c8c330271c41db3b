"""The text of docs/plan.md, written by tools/study/calibrate_plan.py.

Errors against published figures, fitted numbers, layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megaladder.errors import ConfigError
from megaladder.plan.experts import expert_calibration
from megaladder.plan.grpo import Round, grpo_calibration
from megaladder.plan.hardware import find_gpu, find_model, gpus
from megaladder.plan.layout import PlannedLayout, Work
from megaladder.plan.memory import GIB, estimate_memory
from megaladder.plan.search import Plan, Task, search
from megaladder.plan.throughput import calibration
from megaladder.tools.study import published_runs as published

SFT_LENGTH, GRPO_LENGTH = 20480, 22528  # data.seq_length of the two shipped recipes
ANSWER_LENGTH = 8000  # tokens, an assumption: nobody publishes the mean
CLUSTERS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
HEAD = (
    "GPUs",
    "tp",
    "pp",
    "vpp",
    "cp",
    "dp",
    "mbs",
    "recompute",
    "GiB/GPU",
    "s",
    "tokens/s/GPU",
    "MFU",
)
Priors = Mapping[str, tuple[float, str]]

INTRODUCTION = """\
Written by `python tools/study/calibrate_plan.py --write`; the gate in `tests/plan/` reads the
same data. Layouts and times for our own runs are **predicted**; measured are 6 and 12 layers of
Qwen3-14B on one H200 (docs/h200.md), which calibrate. On FP8 runs that are not in the table an
outside check of the earlier calibration found 0.65 of the published rate for a 70B model with tensor,
pipeline and virtual pipeline parallelism on H100, and 1.33 for an 8B model with data parallelism
only on H200; those figures are not in our hands, and whether this calibration meets them is not
known."""

BY_SOURCE = """\
Held out is by source: each source's figures are predicted by numbers fitted to the other sources
only. The forms of the cost model were settled with all figures in view."""

RULES = """\
Which rows, and which of them calibrate: `tools/study/published_runs.yaml`, written down before
anything was fitted. Error = predicted / published − 1; predicted from the source's own layout,
batch, GPU and precision.

- Compared are tokens/s/GPU (or seconds), never TFLOP/s or MFU: sources count FLOPs differently
  (causal attention halved or not, none for packed rows, FP8 over the bf16 or the FP8 peak).
  `plan` and `metrics.jsonl` count 6 a matrix parameter and token plus causal attention, over the
  bf16 peak of the data sheet.
- LoRA rows: no weight gradients, no gradient traffic, no optimizer. SQuAD rows: packed samples of
  about 200 tokens attend to themselves only.
- What a source leaves open is not guessed in our favour: NeMo's fine-tuning table names no
  virtual stages, so none are assumed; Bridge's FSDP recipe recomputes some layers and its page
  does not say how many, so none are.
- After the first fit was seen, the structure changed once (the best measured matrix product of
  each GPU instead of its data-sheet peak, and FlashAttention-2 for the PyTorch-native systems),
  and one row's software was corrected from its own recipe (Automodel's 8B LoRA does not compile).
  On 28 November 2026 it changed again, with a profile of our own at hand: FP8 casts are counted by
  every linear layer's input and the gradient of its output (the gated MLP's is twice as wide as its
  input), AdamW, norm, clipping and the copy to bf16 as 46 bytes of a parameter's shard, and setting
  gradients to zero as 4 bytes of each. In the same way the cache and the share of the GPUs that an engine gets in GRPO were
  settled with all five GRPO figures in view, and a latency a node of a ring (10 µs, assumed) was
  added then."""

UNTUNED = """\
A model of good runs cannot predict them. They enter no fit and no average; the distance is shown
because it is worth knowing."""

EXPERTS = """\
Qwen3-30B-A3B and Qwen3-235B-A22B. Beside what a dense layer takes: the router; the all-to-all (its
bytes over the link that each takes, NVLink or network); the permutations; grouped products, each
with its expert's few tokens; and a floor, `host_s`: below it a layer's few tokens wait for the host
that starts its kernels. The forms were settled with all of these figures in view, the numbers are
fitted to them with the dense ones held fixed. Loads are balanced by force in all of them; for real
ones there is `--imbalance`, the tokens of the busiest rank over the mean."""

EXPERT_ROUNDS = """\
GRPO rounds with them, of which every second calibrates one number, what a layer with experts takes
in a decoding step:"""

SFT_TEXT = """\
SFT (`examples/configs/sft_qwen3_14b.yaml`): 256 samples a step, rows of 20,480 tokens, bf16. The
time is that of 256 full rows, the slowest case: packed shorter samples need fewer rows and less
attention (`--sample-length`)."""

GRPO_TEXT = """\
GRPO (`examples/configs/grpo_qwen3_14b.yaml`): 512 prompts × 16 a round, 16 updates, engine and
trainer on the same GPUs, rows of 22,528; answers of 8,000 tokens on average assumed. Phases in
seconds: generation / log-probs / updates."""

EXPERT_LAYOUTS = """\
The same runs (`examples/configs/{sft,grpo}_qwen3_30b_a3b.yaml`), bf16, balanced loads; s: of a step,
or of a round."""

SCALING_TEXT = """\
bf16 on H200, rows of 8,192 tokens, 4 rows a GPU and step (at least 256): weak scaling.
Stragglers, congestion and failures are not in the model; where sources span clusters it is off by
what these cost: torchtitan lost 2–3 % from 8 to 128 GPUs, and 405B on 1,024 H100 is predicted
within 4 %. Beyond that nothing here was checked."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(
        [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)]
    )


def page(
    priors: Priors,
    blind: Sequence[published.Comparison],
    blind_experts: Sequence[published.Comparison],
) -> str:
    """docs/plan.md. blind: the training figures, each predicted without its source."""
    training, rounds = published.training_comparisons(), published.round_comparisons()
    experts = published.expert_comparisons()
    tuned_experts = [row for row in experts if row.role != "untuned"]
    expert_rounds = published.expert_round_comparisons()
    tuned = [row for row in training if row.role != "untuned"]
    absent = [(row["what"], row["source"], row["reason"]) for row in published.not_modelled()]
    parts = [
        "# `megaladder plan`: how far its predictions can be trusted, and what it advises for H200",
        INTRODUCTION,
        "## Summary",
        _summary(
            ("training", [*tuned, *blind]),
            ("GRPO rounds", rounds),
            ("experts: training", [*tuned_experts, *blind_experts]),
            ("experts: GRPO rounds", expert_rounds),
        ),
        BY_SOURCE,
        _by_source([*blind, *blind_experts]),
        "## Published training runs",
        RULES,
        _training_table(tuned, blind),
        "### Rows that their own source calls untuned",
        UNTUNED,
        _comparison_table([r for r in [*training, *experts] if r.role == "untuned"], reason=True),
        "### Published, not predicted",
        table(["figure", "source", "why not"], absent),
        "## Published GRPO rounds",
        _comparison_table(rounds),
        "## Mixtures of experts",
        EXPERTS,
        _configurations(tuned_experts, blind_experts),
        _training_table(tuned_experts, blind_experts),
        EXPERT_ROUNDS,
        _comparison_table(expert_rounds),
        "## Memory",
        _memory(),
        "## The fitted numbers",
        _numbers(priors),
        "## Layouts for Qwen3-14B on H200",
        _layouts(),
        "## Layouts for Qwen3-30B-A3B on H200",
        _expert_layouts(),
        "## From 8 to 4,096 GPUs",
        _scaling(),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(*kinds: tuple[str, Sequence[published.Comparison]]) -> str:
    rows = []
    together = ("all", [row for _, figures in kinds for row in figures])
    for name, figures in (*kinds, together):
        for role in ("calibration", "held out", None):
            chosen = [row for row in figures if role in (None, row.role)]
            middle, largest = published.summary(chosen)
            rows.append((name, role or "both", len(chosen), f"{middle:.1%}", f"{largest:.1%}"))
    return table(["figures", "role", "n", "median error", "largest"], rows)


def _by_source(blind: Sequence[published.Comparison]) -> str:
    rows = []
    for experts in (False, True):
        kind = [row for row in blind if row.experts is experts]
        for source in sorted({row.family for row in kind}):
            chosen = [row for row in kind if row.family == source]
            middle, largest = published.summary(chosen)
            name = f"{source}, experts" if experts else source
            rows.append((name, len(chosen), f"{middle:.1%}", f"{largest:.1%}"))
    return table(["left out", "n", "median error", "largest"], rows)


def _configurations(
    rows: Sequence[published.Comparison], blind: Sequence[published.Comparison]
) -> str:
    count, middle, largest = published.of_configurations(rows)
    _, blind_middle, blind_largest = published.of_configurations(blind)
    return (
        f"Releases that measured one configuration again count as often above. Each of the {count}"
        f" configurations once: median\n{middle:.1%}, largest {largest:.1%}; without its source"
        f" {blind_middle:.1%} and {blind_largest:.1%}."
    )


def _training_table(
    rows: Sequence[published.Comparison], blind: Sequence[published.Comparison]
) -> str:
    unseen = {row.id: row.error for row in blind}
    body = []
    for row in rows:
        digits = 1 if row.published < 1000 else 0
        values = [f"{value:,.{digits}f}" for value in (row.predicted, row.published)]
        unit = published.UNITS[row.measure]
        errors = [f"{row.error:+.1%}", f"{unseen[row.id]:+.1%}"]
        body.append([row.id, unit, *values, *errors, row.source])
    head = ["run", "unit", "predicted", "published", "error", "without its source", "source"]
    return table(head, body)


def _comparison_table(rows: Sequence[published.Comparison], reason: bool = False) -> str:
    body = []
    for row in rows:
        digits = 1 if row.published < 1000 else 0
        cells = [
            row.id,
            published.UNITS[row.measure],
            f"{row.predicted:,.{digits}f}",
            f"{row.published:,.{digits}f}",
            f"{row.error:+.1%}",
        ]
        body.append(
            [
                *cells,
                f"**{row.role}**" if row.role == "held out" else row.role,
                row.source,
                *([row.reason] if reason else []),
            ]
        )
    return table(
        [
            "run",
            "unit",
            "predicted",
            "published",
            "error",
            "role",
            "source",
            *(["why untuned"] if reason else []),
        ],
        body,
    )


def _memory() -> str:
    """The one published peak of a layout that this program has, and states per parameter."""
    shape = find_model("Qwen2.5-14B")
    estimate = estimate_memory(
        shape, PlannedLayout(tp=4, dp=2, recompute="selective"), Work(8192, 16, "bf16")
    )
    unfused = 8192 * shape.vocab_size / 4 * 4 * 2  # their head keeps fp32 logits and their gradient
    total = estimate.total - estimate.head + unfused
    return f"""\
States: 6 + 12 / (dp·cp) bytes a parameter in bf16 (2 weight, 4 gradient, 12 sharded optimizer),
checked against megatron-core's own tensors on a CPU (`tests/plan/test_measured.py`). Published
peak of a layout that we have too: ms-swift, Qwen2.5-14B, TP4 DP2, 8,192 tokens: **64 GiB** a GPU
(its script says 65); by our formulas, with logits kept as there: **{total / GIB:.1f} GiB**
({total / GIB / 64 - 1:+.1%}), of which {estimate.reserve / GIB:.1f} are the reserve for framework
and fragmentation. One figure is no calibration: watch the first step."""


def _numbers(priors: Priors) -> str:
    found = {**asdict(calibration()), **asdict(expert_calibration()), **asdict(grpo_calibration())}
    rows = [
        (name, f"{found[name]:.3g}", f"{prior:g}", why) for name, (prior, why) in priors.items()
    ]
    meaning = (
        "Meaning: the field comments in `plan/throughput.py`, `plan/experts.py` and `plan/grpo.py`."
        " A number that stayed on its prior (link, overlap, tp_overlap) is one that the figures say"
        " little about."
    )
    return f"{meaning}\n\n{table(['number', 'fitted', 'prior', 'why this prior'], rows)}"


def _plan_row(count: int, plan: Plan) -> list[Any]:
    layout = plan.layout
    return [
        count,
        layout.tp,
        layout.pp,
        layout.vpp or "–",
        layout.cp,
        layout.dp,
        layout.micro_batch_size,
        layout.recompute,
        f"{plan.memory.total / GIB:.0f}",
        f"{plan.seconds:,.1f}",
        f"{plan.tokens_per_s_gpu:,.0f}",
        f"{plan.mfu:.1%}",
    ]


def _row_or_reason(count: int, task: Task) -> list[Any]:
    try:
        return _plan_row(count, search(task)[0])
    except ConfigError as error:
        return [count, f"does not fit; {str(error).split('; ')[-1]}", *[""] * (len(HEAD) - 2)]


def sft_task(count: int, precision: str = "bf16", model: str = "Qwen3-14B") -> Task:
    """The shipped SFT recipe on `count` H200.

    256 samples a step in rows of 20,480, every row taken as one sequence."""
    return Task(find_model(model), find_gpu("h200"), count, Work(SFT_LENGTH, 256, precision))


def grpo_task(count: int, model: str = "Qwen3-14B") -> Task:
    """The shipped GRPO recipe: 512 prompts × 16, 16 updates, colocated."""
    asked = Round(
        512, 16, 16, 200, ANSWER_LENGTH, 20480, GRPO_LENGTH, engine_tp=0, engine_gpus=count
    )
    return Task(
        find_model(model),
        find_gpu("h200"),
        count,
        asked.update_work(),
        asked,
        colocated_engine=True,
    )


def _grpo_row(count: int, best: Plan) -> list[Any]:
    phases = best.phases
    assert phases is not None
    return [
        *_plan_row(count, best),
        best.engine_tp,
        f"{phases.generation:,.0f} / {phases.logprobs:,.0f} / {phases.update:,.0f}",
    ]


def _layouts() -> str:
    counts = (8, 16, 64)
    return "\n\n".join(
        [
            SFT_TEXT,
            table(HEAD, [_plan_row(count, search(sft_task(count))[0]) for count in counts]),
            "The same with FP8 linear layers:",
            table(HEAD, [_plan_row(count, search(sft_task(count, "fp8"))[0]) for count in counts]),
            GRPO_TEXT,
            table(
                [*HEAD, "engine tp", "phases"],
                [_grpo_row(count, search(grpo_task(count))[0]) for count in counts],
            ),
        ]
    )


def _expert_layouts() -> str:
    head, rows = ["run", "GPUs", "ep", *HEAD[1:]], []
    for name, task_of in (("SFT", sft_task), ("GRPO", grpo_task)):
        for count in (8, 64):
            task = task_of(count, model="Qwen3-30B-A3B")
            best = search(task)[0]
            rows.append([name, count, best.layout.ep, *_plan_row(count, best)[1:]])
    return EXPERT_LAYOUTS + "\n\n" + table(head, rows)


def _scaling() -> str:
    text = [SCALING_TEXT]
    for model in ("Qwen3-14B", "Llama-3-70B"):
        shape, gpu = find_model(model), find_gpu("h200")
        tasks = [
            (count, Task(shape, gpu, count, Work(8192, max(256, 4 * count), "bf16")))
            for count in CLUSTERS
        ]
        text += [
            f"**{model}**",
            table(HEAD, [_row_or_reason(count, task) for count, task in tasks]),
        ]
    kinds = [
        (name, Task(find_model("Qwen3-14B"), find_gpu(name), 64, Work(8192, 256, "bf16")))
        for name in gpus()
    ]
    rows = [[name, *_row_or_reason(64, task)[1:]] for name, task in kinds]
    text += ["**Qwen3-14B on 64 GPUs of each kind**", table(["GPU", *HEAD[1:]], rows)]
    return "\n\n".join(text)
