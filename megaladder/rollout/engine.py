"""The protocol of generation engines.

Token ids in, `Completion`s out, weights that carry a version. No vLLM, no torch here.

`Engine` is the protocol that GRPO and evaluation are written against; `BaseEngine` holds what every
engine shares (version and validity of the weights, restarts that are counted and bounded).
`fake_engine.FakeEngine` and `vllm_engine.VllmEngine` are the two.

Seeds: with `SamplingParams.seed` set, sample i of a prompt is drawn with `sample_seed(seed,
prompt_ids, i)`: it does not depend on what else is in the batch, so a resumed run asks for the same
samples. (Which tokens come out is then up to the engine's arithmetic.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from megaladder.errors import ConfigError, EngineError
from megaladder.types import Completion


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults sample from the model's own distribution, as RL must.

    temperature 0 = greedy (top_p and top_k then play no part). `stop` strings are cut off the text;
    their tokens stay in `token_ids`.
    """

    n: int = 1  # samples a prompt
    temperature: float = 1.0
    top_p: float = 1.0  # in (0, 1]
    top_k: int = 0  # 0 = all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 1024  # of the answer
    min_tokens: int = 0  # before which no end of sequence is sampled
    seed: int | None = None  # None = the engine's own stream, not repeatable
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False  # sample on after end-of-sequence, to max_tokens (benchmarks of speed)
    # in `text`; False where a stop string or a delimiter is a special token
    skip_special_tokens: bool = True
    logprobs: bool = False  # log-prob of each sampled token, after temperature and top-k/top-p
    routed_experts: bool = False  # the experts of each token; of an engine that was started for it

    def __post_init__(self) -> None:
        problems = [
            (self.n >= 1, f"n {self.n} should be at least 1"),
            (self.temperature >= 0, f"temperature {self.temperature} should be 0 (greedy) or more"),
            (0 < self.top_p <= 1, f"top_p {self.top_p} should be in (0, 1]"),
            (self.top_k >= 0, f"top_k {self.top_k} should be 0 (all tokens) or more"),
            (0 <= self.min_p <= 1, f"min_p {self.min_p} should be in [0, 1]"),
            (self.max_tokens >= 1, f"max_tokens {self.max_tokens} should be at least 1"),
            (
                0 <= self.min_tokens <= self.max_tokens,
                f"min_tokens {self.min_tokens} should be in [0, max_tokens {self.max_tokens}]",
            ),
            (all(self.stop), "stop holds an empty string, which would stop at once"),
        ]
        broken = [message for fine, message in problems if not fine]
        if broken:
            raise ConfigError("sampling: " + "; ".join(broken))


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One completion to make: `params.n` is 1 and `params.seed` is this very sample's."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class FileWeights:
    """A Hugging Face folder (safetensors) that the engine loads in place.

    `weight_sync` writes it. Works on every platform. `others`: where the same lies on nodes 1, 2,
    …; empty = `path` is good everywhere.
    """

    path: str
    others: tuple[str, ...] = ()
    resendable = True  # a restarted engine can be given the same weights again

    def on_node(self, node: int) -> str:
        return self.others[node - 1] if node and self.others else self.path


class WeightClient(Protocol):
    """What a weight transport may ask of an engine.

    vLLM's four native calls, for all replicas at once, and loading a folder.

    The dictionaries are plain data (JSON); device buffers travel beside them, by the transport's
    own means.
    """

    def load_folder(self, path: str) -> None: ...

    def init_weight_transfer_engine(
        self, init_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> None:
        """`init_info`: the same for all replicas, or a list with one for each."""
        ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Mapping[str, Any]) -> None: ...

    def finish_weight_update(self) -> None: ...

    def call_workers(self, method: str, arguments: Mapping[str, Any] | None = None) -> list[Any]:
        """Calls a method of the engine's worker extension class on every worker."""
        ...


class WeightTransport(Protocol):
    """Weights that bring themselves over (CUDA IPC, NCCL).

    `resendable`: `send` may be called again for the same version.
    """

    resendable: bool

    def send(self, client: WeightClient) -> None: ...


Weights = str | FileWeights | WeightTransport


@dataclass(frozen=True, slots=True)
class Health:
    """`ok` = every replica is up and holds valid weights. `detail` says what is not."""

    ok: bool
    detail: str = ""
    restarts: int = 0  # since the engine was made


@runtime_checkable
class Engine(Protocol):
    """Generation as GRPO and evaluation see it. All methods are for one caller at a time."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that generate now; stamped on each completion."""
        ...

    @property
    def restarts(self) -> int:
        """How often the engine was restarted after a failure, in all."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        expect_version: int | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions a prompt, in the prompts' order."""
        ...

    def stream(
        self, requests: Sequence[SampleRequest], expect_version: int | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the request, completion) as they finish, each exactly once.

        Closing the iterator aborts the rest.
        """
        ...

    def answer(self, request: SampleRequest, on_piece: OnPiece) -> Completion:
        """One completion; its text goes to `on_piece` as it comes."""
        ...

    def update_weights(self, weights: Weights, version: int) -> None: ...

    def sleep(self, level: int = 1) -> bool: ...

    def wake(self, tags: Sequence[str] = ()) -> bool: ...

    def forget_prompts(self) -> None: ...

    def health(self) -> Health: ...

    def describe(self) -> dict[str, Any]:
        """What generates, for fingerprints and reports: engine, version, dtype, device."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of an answer.

    start: characters before it; 0 again where a lost engine was restarted and the answer begins
    anew."""

    start: int
    text: str


OnPiece = Callable[[Piece], None]


class EngineFailure(Exception):
    """Inside engines only: a replica died, hung or broke.

    Recoverable by a restart; `EngineError` is what callers see when it is not. `replica`: which.
    """

    def __init__(self, words: str, replica: int | None = None) -> None:
        super().__init__(words)
        self.replica = replica


def sample_seed(seed: int, prompt_ids: Sequence[int], sample: int) -> int:
    """63-bit seed of one sample.

    A function of the run's seed, the prompt and the sample's index alone.
    """
    text = f"{seed}|{sample}|{','.join(map(str, prompt_ids))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def expand(
    prompt_ids: Sequence[int], params: SamplingParams, samples: Sequence[int] | None = None
) -> list[SampleRequest]:
    """The requests for one prompt.

    All n samples, or only the given sample indices (the missing ones of a resumed run).
    """
    ids = tuple(prompt_ids)
    one = replace(params, n=1)
    chosen = range(params.n) if samples is None else samples
    if params.seed is None:
        return [SampleRequest(ids, one) for _ in chosen]
    return [
        SampleRequest(ids, replace(one, seed=sample_seed(params.seed, ids, sample)))
        for sample in chosen
    ]


@dataclass
class RestartBudget:
    """Restarts allowed within one `stream`.

    `spend` raises EngineError with the engine's own message once they are used up.
    """

    allowed: int
    used: int = field(default=0, init=False)

    def spend(self, failure: EngineFailure, num_unfinished: int) -> None:
        if self.used >= self.allowed:
            raise EngineError(
                f"the generation engine failed {self.used + 1} times in one call ({self.allowed}"
                f" restarts allowed), with {num_unfinished} completions unfinished; fix: see its"
                f" message, then start the same command again, which resumes. Engine: {failure}"
            ) from failure
        self.used += 1


class BaseEngine:
    """State that every engine keeps: version, validity and sleep.

    Subclasses implement `_run` (one stream) and `_apply` (new weights).
    """

    def __init__(self, max_restarts: int = 1):
        self._max_restarts = max_restarts
        self._version = 0
        # what a restarted engine must be given again; None = those it starts with
        self._weights: Weights | None = None
        self._invalid_because = ""
        self._asleep_level = 0
        self._restarts = 0
        self._closed = False
        self._on_piece: OnPiece | None = None

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def restarts(self) -> int:
        return self._restarts

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        expect_version: int | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        requests = [request for prompt in prompts for request in expand(prompt, params)]
        done: list[Completion | None] = [None] * len(requests)
        for index, completion in self.stream(requests, expect_version):
            done[index] = completion
        whole = [completion for completion in done if completion is not None]
        assert len(whole) == len(requests), "the engine ended without finishing every request"
        return [whole[start : start + params.n] for start in range(0, len(whole), params.n)]

    def stream(
        self, requests: Sequence[SampleRequest], expect_version: int | None = None
    ) -> Generator[tuple[int, Completion]]:
        """See `Engine.stream`."""
        self.require_ready(expect_version)
        for request in requests:
            if not request.prompt_ids:
                raise ConfigError(
                    "a prompt has no tokens; fix: give it a text, or use the chat template"
                )
            assert request.params.n == 1, "a SampleRequest is one sample; see expand()"
        return self._run(requests, RestartBudget(self._max_restarts))

    def answer(self, request: SampleRequest, on_piece: OnPiece) -> Completion:
        """See `Engine.answer`."""
        self._on_piece = on_piece
        try:
            # closed at once when the caller is interrupted: that aborts the request
            with closing(self.stream([request])) as results:
                ((_, completion),) = results
            return completion
        finally:
            self._on_piece = None

    def update_weights(self, weights: Weights, version: int) -> None:
        """All replicas take the weights, then generate as `version`.

        If it fails, nothing generates until an update succeeds.
        """
        self._require_open()
        if version < self._version:
            raise EngineError(
                f"weights version {version} is older than the engine's {self._version}; fix:"
                " versions only grow"
            )
        weights = FileWeights(weights) if isinstance(weights, str) else weights
        self._invalid_because = f"the update to weights version {version} did not finish"
        self._apply(weights)
        self._weights, self._version, self._invalid_because = weights, version, ""

    def require_ready(self, expect_version: int | None = None) -> None:
        """Raises EngineError unless generation now would use whole, expected weights."""
        self._require_open()
        if self._asleep_level:
            raise EngineError(
                f"the engine sleeps (level {self._asleep_level}); fix: wake() before generating"
            )
        if self._invalid_because:
            raise EngineError(
                f"the engine holds no valid weights: {self._invalid_because}; fix: update_weights()"
                " before generating"
            )
        if expect_version is not None and expect_version != self._version:
            raise EngineError(
                f"the engine holds weights version {self._version}, asked for {expect_version};"
                " fix: update_weights() first"
            )

    def sleep(self, level: int = 1) -> bool:
        """Level 1 parks the weights in host memory, level 2 drops them (an update must follow).

        False = the platform has no sleep mode."""
        self._require_open()
        if level not in (1, 2):
            raise ConfigError(
                f"sleep level {level} should be 1 (weights to host memory) or 2 (weights dropped)"
            )
        supported = self._sleep(level)
        self._asleep_level = level
        if (
            level == 2
            # on every platform alike, so that a caller who forgets the update is told on a laptop
            # too
        ):
            self._invalid_because = "sleep level 2 dropped them"
        return supported

    def wake(self, tags: Sequence[str] = ()) -> bool:
        """Wakes all (no tags) or parts: "weights", then "kv_cache".

        Generation waits for everything.
        """
        self._require_open()
        supported = self._wake(tags)
        if not tags or "kv_cache" in tags:
            self._asleep_level = 0
        return supported

    def forget_prompts(self) -> None:
        """Drops what is kept of earlier prompts.

        What comes next is computed as if they had never been asked."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine; safe to call twice."""
        self._closed = True

    def _weights_after_restart(self, replica: int | None = None) -> None:
        """Gives a restarted engine (or replica) the version it had.

        Refuses where only the trainer can.
        """
        if self._weights is None:
            return
        if not getattr(self._weights, "resendable", False):
            self._invalid_because = (
                f"it was restarted and weights version {self._version} came by a transport that"
                " sends only once"
            )
            self.require_ready()
        self._apply(self._weights, replica)

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; fix: make a new one")

    def _run(
        self, requests: Sequence[SampleRequest], budget: RestartBudget
    ) -> Generator[tuple[int, Completion]]:
        raise NotImplementedError

    def _apply(self, weights: Weights, replica: int | None = None) -> None:
        raise NotImplementedError

    def _sleep(self, level: int) -> bool:
        return False

    def _wake(self, tags: Sequence[str]) -> bool:
        return False
