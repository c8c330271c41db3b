"""Test-time budgets of s1 (arXiv 2501.19393), for any pair of delimiters.

`</think>` models too, and models not trained for it.

Thinking and answer are two phases. Thinking stops at `end` (or a stop string), or at `max_thinking`
tokens; then `end`, or the forced end with "Final Answer:", is put in and the answer is generated
with what is left of max_tokens. `num_waits` times the end of thinking is suppressed and "Wait" put
in its place. Two accountings of the limit, which give different numbers:

    published   every round gets the full max_thinking; at the end the thinking is cut to it (s1's
    evaluation code)
    remaining   a round gets what the model's tokens of the rounds before it left; the waits
                themselves cost nothing (s1's README)

Rejection sampling draws thinking of at most limit + 1 tokens until it ends within the limit.
Prompt-conditional budgets (steps, tokens, effort) are `instruction`. Token ids are kept as sampled:
only the tokens of a delimiter are cut off, and text is encoded only where we put it in. Cutting
stored answers afterwards, without a model: `analyze budget`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from megaladder.config.verbs.evaluation import BudgetSection
from megaladder.errors import ConfigError
from megaladder.evaluation.run import Drawn
from megaladder.rollout.engine import Engine, SampleRequest, SamplingParams, sample_seed
from megaladder.types import Completion, FinishReason, Tokenizer

AUTO_MARGIN = 100  # tokens that `auto` keeps free, as in s1's code
WAVE = 256  # samples whose phases run together; a kill loses at most the waves under way
SHORT = (
    "Answer after a short amount of thinking. Do not spend excessive time double-checking your"
    " work."
)
LONG = (
    "Answer after a long amount of thinking. If you feel like you are finished early, spend the"
    " extra time trying to double check your work until you are absolutely sure that you have the"
    " correct answer."
)


def instruction(section: BudgetSection) -> str:
    """What is appended to the prompt: s1's token-, step- and class-conditional control texts.

    "" for none."""
    parts = [
        f"Think for up to {section.tokens} tokens." if section.tokens else "",
        f"Think for up to {section.steps} steps." if section.steps else "",
        {"short": SHORT, "long": LONG, None: ""}[section.effort],
    ]
    return "".join(f"\n\n{part}" for part in parts if part)


@dataclass
class _Thought:
    """One sample's way through the phases. `ids` are the thinking tokens so far, waits included."""

    index: int
    request: SampleRequest
    ids: list[int] = field(default_factory=list)
    num_generated: int = 0  # of these, what the model wrote
    cut_off: bool = False  # the limit, not the model, ended the last round
    aborted: bool = False
    tries: int = 1


class BudgetSampler:
    """A `run.Sampler` that forces budgets.

    `tokenizer` must be the model's; `longest_prompt` (tokens) is for max_thinking "auto"."""

    def __init__(self, section: BudgetSection, tokenizer: Tokenizer, longest_prompt: int = 0):
        self._section, self._tokenizer = section, tokenizer
        self._start = self._encode(section.start)
        self._end = section.end
        self._end_forced = (
            section.end_forced
            if section.end_forced is not None
            else f"{section.end}\nFinal Answer:"
        )
        self._longest_prompt = longest_prompt

    def __call__(
        self, engine: Engine, requests: Sequence[SampleRequest]
    ) -> Iterator[tuple[int, Drawn]]:
        """See `run.Sampler`: each request once, in waves."""
        for first in range(0, len(requests), WAVE):
            wave = [
                _Thought(first + i, self._opened(request))
                for i, request in enumerate(requests[first : first + WAVE])
            ]
            if self._section.reject_above is not None:
                yield from self._rejected(engine, wave)
                wave = [thought for thought in wave if not thought.aborted]
            else:
                self._think(engine, wave)
            yield from self._answer(engine, wave)

    def limit(self, params: SamplingParams) -> int:
        """Thinking tokens of a round: max_thinking, s1's "auto", or all that max_tokens allows."""
        wanted = self._section.max_thinking
        if wanted == "auto":
            wanted = (
                params.max_tokens
                - self._longest_prompt
                - len(self._start)
                - len(self._encode(self._end_forced))
                - AUTO_MARGIN
            )
        wanted = params.max_tokens - 1 if wanted is None else wanted
        if not 1 <= wanted < params.max_tokens:
            raise ConfigError(
                f"budget.max_thinking {self._section.max_thinking} is {wanted} thinking tokens,"
                f" should be in [1, {params.max_tokens - 1}] (max_tokens is {params.max_tokens} and"
                " the answer needs some); fix: --max-tokens above it"
            )
        return wanted

    def _opened(self, request: SampleRequest) -> SampleRequest:
        """The prompt with the opening delimiter, unless it ends with it.

        Some templates open the thinking themselves."""
        length = len(self._start)
        opened = length == 0 or request.prompt_ids[-length:] == tuple(self._start)
        return (
            request if opened else replace(request, prompt_ids=(*request.prompt_ids, *self._start))
        )

    def _think(self, engine: Engine, wave: list[_Thought]) -> None:
        """num_waits + 1 rounds of thinking.

        A thought that can gain nothing more (its limit is used up) is left alone."""
        wait = self._encode(self._section.wait)
        published = self._section.accounting == "published"
        for round_number in range(self._section.num_waits + 1):
            going = []
            for thought in wave:
                limit = self.limit(thought.request.params)
                used = len(thought.ids) if published else thought.num_generated
                if thought.aborted or used >= limit:
                    continue
                if round_number > 0:
                    thought.ids += wait
                going.append(
                    (
                        thought,
                        self._round(thought, limit if published else limit - used, round_number),
                    )
                )
            for thought, completion in _completions(engine, going):
                self._take(thought, completion)
        for thought in wave:
            limit = self.limit(thought.request.params)
            if published and len(thought.ids) > limit:
                thought.ids, thought.cut_off = thought.ids[:limit], True

    def _round(
        self, thought: _Thought, max_tokens: int, round_number: int, attempt: int = 0
    ) -> SampleRequest:
        params = replace(
            self._phase_params(thought.request.params, round_number, attempt),
            max_tokens=max_tokens,
            min_tokens=min(1, max_tokens) if round_number else 0,
            stop=(self._end, *self._section.stop),
        )
        return SampleRequest((*thought.request.prompt_ids, *thought.ids), params)

    def _phase_params(self, params: SamplingParams, phase: int, attempt: int = 0) -> SamplingParams:
        """Special tokens stay in the text, since delimiters may be special.

        Each phase and attempt has a seed of its own."""
        seed = None if params.seed is None else sample_seed(params.seed, (phase,), attempt)
        return replace(params, seed=seed, skip_special_tokens=False)

    def _take(self, thought: _Thought, completion: Completion) -> None:
        """Adds a round's tokens, without those of the delimiter that ended it."""
        thought.aborted = completion.finish_reason is FinishReason.ABORT
        thought.cut_off = completion.finish_reason is FinishReason.LENGTH
        kept = list(completion.token_ids) if thought.cut_off else self._before_stop(completion)
        thought.ids += kept
        thought.num_generated += len(kept)

    def _before_stop(self, completion: Completion) -> list[int]:
        """The tokens of `completion.text`, which ends before the stop string.

        A token that straddles the border is encoded anew."""
        ids, text = list(completion.token_ids), completion.text
        while ids and len(self._decode(ids[:-1])) >= len(text):
            ids.pop()
        decoded = self._decode(ids)
        if decoded == text:
            return ids
        whole = ids[:-1]
        return whole + self._encode(text[len(self._decode(whole)) :])

    def _rejected(self, engine: Engine, wave: list[_Thought]) -> Iterator[tuple[int, Drawn]]:
        """Rejection sampling.

        Yields the samples that found no thinking short enough, as answers that are none."""
        limit = self._section.reject_above or 0
        going = list(wave)
        for attempt in range(self._section.max_tries):
            drawn = _completions(
                engine,
                [(thought, self._round(thought, limit + 1, 0, attempt)) for thought in going],
            )
            for thought, completion in drawn:
                thought.ids, thought.tries = [], attempt + 1
                self._take(thought, completion)
                thought.aborted = False
            going = [thought for thought in going if thought.cut_off or len(thought.ids) > limit]
            if not going:
                return
        for thought in going:
            thought.aborted = True
            yield thought.index, self._given_up(thought)

    def _answer(self, engine: Engine, wave: list[_Thought]) -> Iterator[tuple[int, Drawn]]:
        """The second phase: delimiter in, answer out with what is left of max_tokens."""
        bridges: dict[int, str] = {}
        going = []
        for thought in wave:
            if thought.aborted:
                yield thought.index, self._given_up(thought)
                continue
            text = self._decode(thought.ids)
            bridge = (
                ("" if text.endswith("\n") else "\n") + self._end_forced
                if thought.cut_off
                else self._end
            )
            bridges[thought.index] = bridge
            ids = (*thought.request.prompt_ids, *thought.ids, *self._encode(bridge))
            params = thought.request.params
            room = max(1, params.max_tokens - len(thought.ids))
            going.append(
                (
                    thought,
                    SampleRequest(ids, replace(self._phase_params(params, -1), max_tokens=room)),
                )
            )
        for thought, completion in _completions(engine, going):
            bridge = bridges[thought.index]
            ids = (*thought.ids, *self._encode(bridge), *completion.token_ids)
            # "Final Answer:" is part of what is graded: the extractor looks for it
            answer = bridge.rpartition(self._end)[2] + completion.text
            whole = replace(
                completion,
                token_ids=ids,
                text=self._decode(thought.ids) + bridge + completion.text,
                logprobs=(),
            )
            yield thought.index, Drawn(whole, len(thought.ids), thought.tries, answer)

    def _given_up(self, thought: _Thought) -> Drawn:
        """A sample without an answer phase: kept, counted as aborted, graded as no answer."""
        return Drawn(
            Completion(tuple(thought.ids), self._decode(thought.ids), FinishReason.ABORT),
            len(thought.ids),
            thought.tries,
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False) if ids else ""


def _completions(
    engine: Engine, going: Sequence[tuple[_Thought, SampleRequest]]
) -> Iterator[tuple[_Thought, Completion]]:
    if going:
        for position, completion in engine.stream([request for _, request in going]):
            yield going[position][0], completion
