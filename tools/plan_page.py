"""The text of docs/plan.md, rendered from megaladder.plan: errors against published figures, layouts for H200, scaling. No fitting here."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megaladder.errors import ConfigError
from megaladder.plan import published
from megaladder.plan.grpo import Round, grpo_calibration
from megaladder.plan.hardware import find_gpu, find_model, gpus
from megaladder.plan.layout import Layout, Work
from megaladder.plan.memory import GIB, estimate_memory
from megaladder.plan.search import Plan, Task, search
from megaladder.plan.throughput import calibration

SFT_LENGTH, GRPO_LENGTH = 20480, 22528
Priors = Mapping[str, tuple[float, str]]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def page(priors: Priors, grpo_priors: Priors) -> str:
    """docs/plan.md."""
    training, rounds = published.training_comparisons(), published.round_comparisons()
    tuned = [row for row in training if row.role != "untuned"]
    parts = [
        "# `megaladder plan`: how far its predictions can be trusted, and what it advises for H200",
        "Written by `python tools/calibrate_plan.py --write`; the gate in `tests/plan/` reads the same data. Figures marked *predicted* were"
        " never measured by us: no H200 number of ours stands here.",
        "## Summary", _summary(tuned, rounds), "## Published training runs",
        "Source rows, rule of choice and rule of the split: `megaladder/plan/published.yaml`, written before anything was fitted. Error ="
        " predicted / published − 1. Predicted from the source's own layout, batch, GPU and precision.",
        _comparison_table(tuned), _notes(), "### Rows that their own source calls untuned",
        "A model of good runs cannot predict them, and they are in no average. Shown, because the distance is worth knowing.",
        _comparison_table([row for row in training if row.role == "untuned"], reason=True),
        "### Published, not predicted", table(["figure", "source", "why not"], [(r["what"], r["source"], r["reason"]) for r in published.not_modelled()]),
        "## Published GRPO rounds", _comparison_table(rounds), "## Memory", _memory(), "## The fitted numbers", _numbers(priors, grpo_priors),
        "## Layouts for Qwen3-14B on H200", _layouts(), "## From 8 to 4,096 GPUs", _scaling(),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(tuned: Sequence[published.Comparison], rounds: Sequence[published.Comparison]) -> str:
    rows = []
    for name, figures in (("training", tuned), ("GRPO rounds", rounds), ("all", [*tuned, *rounds])):
        for role in ("calibration", "held out", None):
            chosen = [row for row in figures if role in (None, row.role)]
            middle, largest = published.summary(chosen)
            rows.append((name, role or "both", len(chosen), f"{middle:.1%}", f"{largest:.1%}"))
    return table(["figures", "role", "n", "median error", "largest"], rows)


def _comparison_table(rows: Sequence[published.Comparison], reason: bool = False) -> str:
    body = []
    for row in rows:
        digits = 1 if row.published < 1000 else 0
        cells = [row.id, published.UNITS[row.measure], f"{row.predicted:,.{digits}f}", f"{row.published:,.{digits}f}", f"{row.error:+.1%}"]
        body.append([*cells, f"**{row.role}**" if row.role == "held out" else row.role, row.source, *([row.reason] if reason else [])])
    return table(["run", "unit", "predicted", "published", "error", "role", "source", *(["why untuned"] if reason else [])], body)


def _notes() -> str:
    return """Reading the table:
- Compared are tokens/s/GPU (or seconds), never TFLOP/s or MFU: the sources count FLOPs differently (causal attention halved or not, none for
  packed rows, FP8 over the bf16 or the FP8 peak). `plan` and `metrics.jsonl` count 6 per matrix parameter and token plus causal attention, over
  the bf16 peak.
- LoRA rows: no weight gradients, no gradient traffic, no optimizer. SQuAD rows: packed samples of about 200 tokens attend to themselves only.
- Where a source leaves something open it is not guessed in our favour: NeMo's fine-tuning table names no virtual stages, so none are assumed;
  Bridge's FSDP recipe recomputes some layers, and does not say how many, so none are.
- The structure of the model was changed once after the first fit was seen (achievable instead of data-sheet peaks per GPU, and
  FlashAttention-2 for the PyTorch-native systems), and one row's software was corrected from its own recipe (Automodel's 8B LoRA does not
  compile). Held-out figures never entered a fit, but they were visible then; a stranger's new figure is the harder test."""


def _memory() -> str:
    """The one published peak of a layout that this program has, and states per parameter."""
    shape = find_model("Qwen2.5-14B")
    estimate = estimate_memory(shape, Layout(tp=4, dp=2, recompute="selective"), Work(8192, 16, "bf16"))
    unfused = 8192 * shape.vocab_size / 4 * 4 * 2  # their head keeps fp32 logits and their gradient
    total = estimate.total - estimate.head + unfused
    return f"""States: 6 + 12 / (dp·cp) bytes a parameter in bf16 (2 weight, 4 gradient, 12 optimizer sharded), measured against megatron-core on CPU in
`tests/plan/test_measured.py`. Published peak of such a layout: ms-swift Qwen2.5-14B, TP4 DP2, 8,192 tokens: **64 GiB** a GPU (its table; its
script says 65); by our formulas, with logits kept as theirs are: **{total / GIB:.1f} GiB** ({total / GIB / 64 - 1:+.1%}), of which the reserve for
framework and fragmentation is {estimate.reserve / GIB:.1f}."""


def _numbers(priors: Priors, grpo_priors: Priors) -> str:
    rows = [(name, f"{getattr(calibration(), name):.3g}", f"{prior:g}", why) for name, (prior, why) in priors.items()]
    rows += [(name, f"{getattr(grpo_calibration(), name):.3g}", f"{prior:g}", why) for name, (prior, why) in grpo_priors.items()]
    return "Meaning: the field comments in `plan/throughput.py` and `plan/grpo.py`.\n\n" + table(["number", "fitted", "prior", "why this prior"], rows)


def _plan_row(count: int, plan: Plan) -> list[Any]:
    layout = plan.layout
    return [count, layout.tp, layout.pp, layout.vpp or "–", layout.cp, layout.dp, layout.micro_batch_size, layout.recompute,
            f"{plan.memory.total / GIB:.0f}", f"{plan.seconds:,.1f}", f"{plan.tokens_per_s_gpu:,.0f}", f"{plan.mfu:.1%}"]


def _row_or_reason(count: int, task: Task) -> list[Any]:
    try:
        return _plan_row(count, search(task)[0])
    except ConfigError as error:
        return [count, f"does not fit; {str(error).split('; ')[-1]}", *[""] * (len(HEAD) - 2)]


HEAD = ["GPUs", "tp", "pp", "vpp", "cp", "dp", "mbs", "recompute", "GiB/GPU", "s", "tokens/s/GPU", "MFU"]


def sft_task(count: int, precision: str = "bf16") -> Task:
    """The shipped SFT recipe on `count` H200: 256 samples a step in rows of 20,480, every row taken as one sequence."""
    return Task(find_model("Qwen3-14B"), find_gpu("h200"), count, Work(SFT_LENGTH, 256, precision))


def grpo_task(count: int) -> Task:
    """The shipped GRPO recipe: 512 prompts × 16, 16 updates, colocated; answers taken as 8,000 tokens on average."""
    asked = Round(512, 16, 16, 200, 8000, 20480, GRPO_LENGTH, engine_tp=0, engine_gpus=count)
    return Task(find_model("Qwen3-14B"), find_gpu("h200"), count, asked.update_work(), asked)


def _layouts() -> str:
    counts = (8, 16, 64)
    sft = [(_plan_row(count, search(sft_task(count))[0])) for count in counts]
    fp8 = [(_plan_row(count, search(sft_task(count, "fp8"))[0])) for count in counts]
    grpo = []
    for count in counts:
        best = search(grpo_task(count))[0]
        phases = best.phases
        grpo.append([*_plan_row(count, best), best.engine_tp, f"{phases.generation:,.0f} / {phases.logprobs:,.0f} / {phases.update:,.0f} / {phases.sync:.1f}"])
    return "\n\n".join([
        "All predicted. SFT (`examples/configs/sft_qwen3_14b.yaml`): 256 samples a step, rows of 20,480 tokens, bf16; the time is that of 256"
        " full rows, the worst case (packed shorter samples need fewer rows and less attention).", table(HEAD, sft),
        "The same with FP8 linear layers:", table(HEAD, fp8),
        "GRPO (`examples/configs/grpo_qwen3_14b.yaml`): 512 prompts × 16 a round, 16 updates, engine and trainer on the same GPUs, rows of 22,528;"
        " answers of 8,000 tokens on average assumed. Phases: generation / log-probs / updates / sync, seconds.",
        table([*HEAD, "engine tp", "phases"], grpo),
    ])


def _scaling() -> str:
    """The best layout per cluster size; the batch grows with the cluster, at 32 rows a GPU-octet."""
    text = ["All predicted; bf16 on H200, rows of 8,192 tokens, 4 rows a GPU and step (at least 256): weak scaling."]
    for model in ("Qwen3-14B", "Llama-3-70B"):
        rows = []
        for count in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            task = Task(find_model(model), find_gpu("h200"), count, Work(8192, max(256, 4 * count), "bf16"))
            rows.append(_row_or_reason(count, task))
        text += [f"**{model}**", table(HEAD, rows)]
    rows = []
    for name in gpus():
        task = Task(find_model("Qwen3-14B"), find_gpu(name), 64, Work(8192, 256, "bf16"))
        rows.append([name, *_row_or_reason(64, task)[1:]])
    text += ["**Qwen3-14B on 64 GPUs of each kind**", table(["GPU", *HEAD[1:]], rows)]
    return "\n\n".join(text)

