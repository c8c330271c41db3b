"""A deterministic engine without a model.

For tests, dry runs and debugging the half that consumes completions.

    engine = FakeEngine()                                               # pseudo-random ids, a
    function of prompt and seed engine = FakeEngine(responder=lambda request: "\\\\boxed{42}",
    tokenizer=tokenizer) engine = FakeEngine(faults=Faults(fail_at=(3,)))                    # the
    3rd completion fails, once

It obeys the same rules as the real one (versions, sleep, restarts) through `BaseEngine`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megaladder.errors import EngineError
from megaladder.rollout.engine import (
    BaseEngine,
    EngineFailure,
    FileWeights,
    Health,
    Piece,
    RestartBudget,
    SampleRequest,
    Weights,
)
from megaladder.types import Completion, FinishReason

WORD = re.compile(r"\s*\S+|\s+")


class TextTokenizer(Protocol):
    """The two calls of a Hugging Face tokenizer that the fake needs."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


@dataclass(frozen=True, slots=True)
class Faults:
    """Which completions go wrong, counted from 1 over the engine's life.

    A retried completion counts again.

    `fail_at`: the engine breaks there (a restart helps). `hang_at`: it gives no sign for `hang_s`,
    then counts as broken. `die_from`: from there on every completion breaks, so that restarts run
    out.
    """

    fail_at: tuple[int, ...] = ()
    hang_at: tuple[int, ...] = ()
    die_from: int | None = None
    hang_s: float = 0.05  # stands for the stall timeout


Responder = Callable[[SampleRequest], "str | Sequence[int] | Completion"]


class FakeEngine(BaseEngine):
    """See the module. Without a tokenizer a completion's text is its ids, separated by blanks.

    responder: request → text (needs a tokenizer), token ids or a whole Completion; cut at
    `max_tokens` with finish reason "length".
    """

    def __init__(
        self,
        responder: Responder | None = None,
        tokenizer: TextTokenizer | None = None,
        faults: Faults = Faults(),
        vocab_size: int = 256,
        max_restarts: int = 1,
    ):
        super().__init__(max_restarts)
        self._responder, self._tokenizer, self._faults, self._vocab_size = (
            responder,
            tokenizer,
            faults,
            vocab_size,
        )
        self.num_calls = 0  # completions begun
        self.loaded: list[str] = []  # folders given to update_weights, and again after restarts

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake", "version": "1", "dtype": "none", "device": "none"}

    def health(self) -> Health:
        ok = not self._closed and not self._invalid_because and not self._asleep_level
        return Health(
            ok, self._invalid_because or ("asleep" if self._asleep_level else ""), self._restarts
        )

    def _run(
        self, requests: Sequence[SampleRequest], budget: RestartBudget
    ) -> Generator[tuple[int, Completion]]:
        pending = list(range(len(requests)))
        while pending:
            index = pending[0]
            try:
                completion = self._complete(requests[index])
            except EngineFailure as failure:
                budget.spend(failure, len(pending))
                self._restarts += 1
                self._weights_after_restart()
                continue
            pending.pop(0)
            if self._on_piece is not None:
                for word in WORD.finditer(completion.text):
                    self._on_piece(Piece(word.start(), word.group()))
            yield index, completion

    def _complete(self, request: SampleRequest) -> Completion:
        self.num_calls += 1
        call, faults = self.num_calls, self._faults
        if faults.die_from is not None and call >= faults.die_from:
            raise EngineFailure(f"fake engine died at completion {call}")
        if call in faults.hang_at:
            time.sleep(faults.hang_s)
            raise EngineFailure(
                f"fake engine gave no sign for {faults.hang_s} s at completion {call}"
            )
        if call in faults.fail_at:
            raise EngineFailure(f"fake engine failed at completion {call}")
        answer = (
            _hash_ids(request, self._vocab_size)
            if self._responder is None
            else self._responder(request)
        )
        if isinstance(answer, Completion):
            return answer
        return self._as_completion(answer, request)

    def _as_completion(self, answer: str | Sequence[int], request: SampleRequest) -> Completion:
        if isinstance(answer, str):
            if self._tokenizer is None:
                raise EngineError(
                    "FakeEngine: a responder that returns text needs a tokenizer; fix:"
                    " FakeEngine(…, tokenizer=…)"
                )
            ids = tuple(self._tokenizer.encode(answer, add_special_tokens=False))
        else:
            ids = tuple(int(token) for token in answer)
        limit = request.params.max_tokens
        reason = FinishReason.STOP if len(ids) <= limit else FinishReason.LENGTH
        text = (
            answer
            if isinstance(answer, str) and reason is FinishReason.STOP
            else self._text(ids[:limit])
        )
        logprobs = (
            tuple(-0.5 - 0.001 * (token % 100) for token in ids[:limit])
            if request.params.logprobs
            else ()
        )
        return Completion(ids[:limit], text, reason, logprobs, self._version)

    def _text(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _apply(self, weights: Weights, replica: int | None = None) -> None:
        self.loaded.append(
            weights.path if isinstance(weights, FileWeights) else type(weights).__name__
        )


def _hash_ids(request: SampleRequest, vocab_size: int) -> list[int]:
    """Token ids from a SHA-256 stream of prompt and seed.

    Between 4 and 19, or exactly max_tokens with ignore_eos.
    """
    params = request.params
    key = f"{params.seed}|{','.join(map(str, request.prompt_ids))}".encode()
    first = hashlib.sha256(key).digest()
    length = params.max_tokens if params.ignore_eos else max(params.min_tokens, 4 + first[0] % 16)
    stream = b"".join(
        hashlib.sha256(key + block.to_bytes(4, "big")).digest() for block in range(-(-length // 16))
    )
    return [int.from_bytes(stream[2 * i : 2 * i + 2], "big") % vocab_size for i in range(length)]


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """Prompts with their right answers, and the tokenizer that made the prompts."""

    gold_of: Mapping[tuple[int, ...], str]
    tokenizer: TextTokenizer


def fake_answers(known: KnownAnswers) -> Responder:
    """A responder for the fake engine.

    It boxes the gold answer about every other time, else a number, with text of varying length
    before it.
    """

    def answer(request: SampleRequest) -> list[int]:
        draw = hashlib.sha256(f"{request.params.seed}".encode()).digest()
        right, words = draw[0] % 2 == 0, draw[1] % 8
        gold = known.gold_of[request.prompt_ids]
        said = gold if right else str(int.from_bytes(draw[2:4], "big"))
        text = "so " * words + f"\\boxed{{{said}}}"
        ids = known.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, *request.params.stop_token_ids[:1]]

    return answer
