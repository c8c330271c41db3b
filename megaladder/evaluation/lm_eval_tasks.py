"""lm-eval's own tasks on our engine: IFEval, TruthfulQA (generation), CoQA.

Prompts, data and metrics are lm-eval's, tokens are ours.

Only generation tasks (`generate_until`): a task that scores given continuations is refused.
Thinking is cut off before a metric sees the answer, as published for IFEval. Generations are kept
in `generations.jsonl`, keyed by prompt, decoding and model, so a killed run resumes. Task
definitions of one's own (or copies that read local files): YAML files in <data_dir>/<benchmark>/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from megaladder.config.verbs.evaluation import EvalConfig
from megaladder.data.chat.rendering import render
from megaladder.errors import ConfigError, DataError, MissingDependencyError
from megaladder.evaluation import metrics, report
from megaladder.evaluation.benchmarks.prompting import Prompter
from megaladder.evaluation.benchmarks.spec import BenchmarkSpec
from megaladder.evaluation.store import fingerprint_of
from megaladder.files.shapes import expected
from megaladder.files.sums import forget_sums, write_sums
from megaladder.rewards.extract import answer_part
from megaladder.rollout.engine import Engine, SampleRequest, SamplingParams, expand
from megaladder.run_dir import (
    JsonlFile,
    RunLock,
    atomic_write,
    model_fingerprint,
    read_jsonl,
    set_damaged_aside,
    to_json,
    write_object,
)

DEFAULT_MAX_TOKENS = 256  # lm-eval's, for tasks that name none


def require_installed() -> None:
    """Raises MissingDependencyError with the command."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "this benchmark runs in lm-eval; add it: pip install lm-eval==0.4.13 langdetect"
            " immutabledict nltk"
        )


class Generations:
    """lm-eval requests → texts through our engine, with a cache on disk.

    `params_used` and `cut` describe what was generated."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        config: EvalConfig,
        path: Path,
        made_by: Mapping[str, Any],
    ):
        self._engine, self._prompter, self._config, self._path = engine, prompter, config, path
        self._made_by = fingerprint_of(made_by)
        self.params_used: SamplingParams | None = None
        self.lengths: list[int] = []
        self.num_cut = 0

    def texts(self, arguments: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """One answer per (context, generation arguments).

        Thinking, and everything after a stop string, is cut off."""
        params = [self._params(kwargs) for _, kwargs in arguments]
        keys = [
            self._key(context, one) for (context, _), one in zip(arguments, params, strict=True)
        ]
        set_damaged_aside(self._path)
        with JsonlFile(self._path) as file:
            with expected(
                self._path, "answers to lm-eval's tasks", "delete it, they are made again"
            ):
                known = {str(row["key"]): _kept(row) for row in read_jsonl(self._path, sealed=True)}
            todo = [index for index, key in enumerate(keys) if key not in known]
            requests: list[SampleRequest] = [
                expand(self._prompter.ids(arguments[i][0]), params[i])[0] for i in todo
            ]
            for position, completion in self._engine.stream(requests):
                key = keys[todo[position]]
                known[key] = {
                    "key": key,
                    "text": completion.text,
                    "num_tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason.value,
                }
                file.append(known[key])
        self.params_used = params[0] if params else None
        self.lengths = [known[key]["num_tokens"] for key in keys]
        self.num_cut = sum(known[key]["finish_reason"] == "length" for key in keys)
        return [
            _answer(known[key]["text"], kwargs)
            for key, (_, kwargs) in zip(keys, arguments, strict=True)
        ]

    def _params(self, kwargs: Mapping[str, Any]) -> SamplingParams:
        """The task's decoding under the flags that were given.

        Stop strings are applied afterwards where a model may think first."""
        given, section = dict(kwargs), self._config.rollout
        temperature = (
            given.get("temperature", 1.0)
            if given.get("do_sample", float(given.get("temperature", 0.0)) > 0)
            else 0.0
        )
        return SamplingParams(
            temperature=temperature if section.temperature is None else section.temperature,
            top_p=given.get("top_p", 1.0) if section.top_p is None else section.top_p,
            top_k=section.top_k or 0,
            max_tokens=section.max_tokens or int(given.get("max_gen_toks", DEFAULT_MAX_TOKENS)),
            stop=tuple(_stops(given)) if self._prompter.style == "raw" else (),
            stop_token_ids=self._prompter.stop_token_ids,
            seed=self._config.seed,
        )

    def _key(self, context: str, params: SamplingParams) -> str:
        values = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
        return hashlib.sha256(to_json([self._made_by, context, values]).encode()).hexdigest()[:32]


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the file holds of an answer."""
    named = ("text", str), ("num_tokens", int), ("finish_reason", str)
    return {name: kind(row[name]) for name, kind in named}


def run_spec(
    spec: BenchmarkSpec, config: EvalConfig, prompter: Prompter, engine: Engine, out: Path
) -> dict[str, Any]:
    """Runs one task in lm-eval.

    Writes its results and samples beside ours and returns the summary entry."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = out / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    model = model_fingerprint(config.model.path, config.model.revision)
    made_by = {"model": model, "engine": engine.describe(), "prompt": prompter.fingerprint()}
    generations = Generations(engine, prompter, config, folder / "generations.jsonl", made_by)
    local = Path(config.data_dir) / spec.name if config.data_dir else None
    has_own = local is not None and any(local.glob("*.yaml"))
    manager = TaskManager(
        include_path=str(local) if has_own else None, include_defaults=not has_own
    )
    lock = RunLock(folder)
    try:
        results = lm_eval.simple_evaluate(
            model=_language_model(generations, prompter),
            tasks=[spec.task],
            limit=config.limit,
            task_manager=manager,
            log_samples=True,
            apply_chat_template=prompter.style == "chat",
            system_instruction=prompter.system,
            bootstrap_iters=0,
        )
    except (OSError, ConnectionError, KeyError) as error:
        raise DataError(
            f"{spec.name}: lm-eval's task {spec.task} cannot be loaded or run"
            f" ({type(error).__name__}: {error}); fix: network for its data set, or a task file"
            f" that reads local data in <data_dir>/{spec.name}/"
        ) from error
    finally:
        lock.release()
    return _write(spec, config, folder, results, generations, made_by)


def _language_model(generations: Generations, prompter: Prompter) -> Any:
    from lm_eval.api.model import LM

    class EngineLM(LM):
        """lm-eval's interface over `Generations`."""

        tokenizer_name = "megaladder"

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return generations.texts([request.args for request in requests])

        def loglikelihood(self, requests: Sequence[Any]) -> Any:
            raise ConfigError(
                "this lm-eval task scores given continuations; only generation tasks run on our"
                " engine"
            )

        loglikelihood_rolling = loglikelihood

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return render(
                prompter.tokenizer, chat_history, add_generation_prompt=add_generation_prompt
            )

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return prompter.tokenizer.chat_template

    return EngineLM()


def _write(
    spec: BenchmarkSpec,
    config: EvalConfig,
    folder: Path,
    results: dict[str, Any],
    generations: Generations,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    samples = results.pop("samples")[spec.task]
    scores = _scores(spec, samples, generations, config.seed)
    params = generations.params_used or SamplingParams()
    decoding = {
        name: getattr(params, name)
        for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")
    }
    protocol = {
        **made_by,
        "benchmark": spec.name,
        "decoding": decoding,
        "limit": config.limit,
        "n": 1,
        "lm_eval_task": spec.task,
        "data": {
            "source": f"lm-eval {spec.task}",
            "revision": f"task version {results['versions'].get(spec.task)}",
        },
    }
    protocol["fingerprint"] = fingerprint_of(protocol)
    summary = report.summary_entry(scores, protocol, None)
    plain = {
        **_without_objects(results),
        "protocol": protocol,
        "ci95": summary["ci95"],
        "counts": summary["counts"],
    }
    file = folder / f"samples_{spec.name}.jsonl"
    forget_sums(folder)
    atomic_write(file, "".join(to_json(_as_stored(row)) + "\n" for row in samples))
    write_sums(folder, [file.name])
    write_object(folder / f"results_{spec.name}.json", plain)
    write_object(folder / "summary.json", summary)
    print("\n".join(report.lines(scores, protocol, None)), flush=True)
    return summary


def _scores(
    spec: BenchmarkSpec, samples: Sequence[Mapping[str, Any]], generations: Generations, seed: int
) -> report.Scores:
    """Metrics that have one number per document; the first of the task's list is the headline."""
    names = [
        name for name in samples[0]["metrics"] if all(np.isscalar(row[name]) for row in samples)
    ]
    if not names:
        raise DataError(
            f"{spec.name}: none of lm-eval's metrics {samples[0]['metrics']} has one number per"
            " document"
        )
    values = {name: np.array([float(row[name]) for row in samples]) for name in names}
    values["response_length"] = np.array(generations.lengths[: len(samples)], dtype=np.float64)
    counts = {"samples": len(samples), "truncated": generations.num_cut}
    return report.Scores(
        spec.name,
        len(samples),
        1,
        names[0],
        values,
        metrics.bootstrap_intervals(values, seed=seed),
        counts,
    )


def _answer(text: str, kwargs: Mapping[str, Any]) -> str:
    answer = answer_part(text) or ""
    for stop in _stops(kwargs):
        answer = answer.split(stop)[0]
    return answer


def _stops(kwargs: Mapping[str, Any]) -> list[str]:
    until = kwargs.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _as_stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as lm-eval's own tracker writes it: arguments by name, target as text."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(parts)}
        for i, parts in enumerate(row["arguments"])
    }
    return _without_objects({**row, "arguments": arguments, "target": str(row["target"])})


def _without_objects(value: Any) -> Any:
    """lm-eval's results hold functions and types; they become their text."""
    if isinstance(value, Mapping):
        return {str(key): _without_objects(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_objects(item) for item in value]
    return (
        value
        if value is None or isinstance(value, (str, int, float, bool)) or hasattr(value, "tolist")
        else str(value)
    )
