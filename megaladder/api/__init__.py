"""The Python API: what the verbs do, as a few functions with typed results.

    import megaladder as ml

    run = ml.sft("examples/configs/sft_arithmetic_cpu.yaml")
    scores = ml.evaluate({"model": {"path": str(run.model)}, "benchmark": ["gsm8k"]})
    ml.report([run.folder, scores.folder], out="report.html")

A function takes what the verb takes: a run.yaml, the same keys as a mapping, or a configuration
object. It starts the command line's own process, which starts the ranks that the layout needs, and
waits for it; nothing trains inside the calling process. What comes back is read from the folder
that the run wrote, so `load` gives the same for a run that somebody else started.
"""

from megaladder.api.results import Evaluation, load
from megaladder.api.verbs import evaluate, grpo, report, sft
from megaladder.events.callback import Callback
from megaladder.events.run import Run, Score

__all__ = ["Callback", "Evaluation", "Run", "Score", "evaluate", "grpo", "load", "report", "sft"]
