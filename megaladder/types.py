"""The nouns that travel between folders. Frozen dataclasses over numpy; no torch here.

Shape legend: T = tokens of one micro-batch (packed, one row), N = tokens of one sample, S =
sequences in a micro-batch.

How they follow each other: file row → `Example` → `TokenSample` → `PackedBatch` (SFT);
`Problem` → `Completion` → `Graded` → `RolloutGroup` → `TokenSample` → `PackedBatch` (GRPO);
`Problem` → `Completion` → `Graded` (eval).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

# label of a token that takes no part in the loss; same value as torch.nn.functional.cross_entropy
IGNORE_INDEX = -100


Kind = Literal[
    "math", "gsm8k", "choice", "exact", "countdown", "ifeval", "regex", "json_schema", "code"
]
"""Names of the verifiers (`rewards.verifiers`)."""

DialectName = Literal[
    "megaladder",
    "last-box",
    "first-box",
    "all-boxes",
    "answer-tag",
    "hashes",
    "answer-is",
    "minerva",
    "dapo",
    "ladder",
    "qwen",
    "rethinking",
    "last-line",
    "last-number",
]
"""Names of the places where an answer may stand (`rewards.dialects`)."""


T = TypeVar("T")


def required(value: T | None, name: str) -> T:
    """`value`, which is optional in its class but set wherever this is called."""
    assert value is not None, f"{name} is missing: whoever chose this computation supplies it"
    return value


class Tokenizer(Protocol):
    """What this program asks of a tokenizer: the part of Hugging Face's fast tokenizers in use."""

    chat_template: Any  # Jinja text, or a mapping of them by name; None where there is none
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...

    def __len__(self) -> int: ...

    def __call__(self, text: Any, **options: Any) -> Any: ...

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


class TokenWeighting(StrEnum):
    """Per-token SFT loss, the ten modes of Rethinking SFT.

    arXiv 2604.06628 code, importance_sampling_mode."""

    VANILLA = "vanilla"
    TEACHER_WEIGHTED = "teacher-weighted"
    DFT = "dft"
    ADV_ONLY = "adv-only"
    PPO_ORI = "ppo-ori"
    PPO = "ppo"
    CLIP = "clip"
    CISPO = "cispo"
    GSPO_ORI = "gspo-ori"
    GSPO = "gspo"


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end-of-sequence token or stop string
    LENGTH = "length"  # max_tokens reached: the text is truncated
    ABORT = "abort"  # the engine gave up on it; never trained on, never scored as an answer


class Verdict(StrEnum):
    """What grading can find.

    `undecided` is no kind of wrong: it is counted apart, and nothing is ever trained on it."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNDECIDED = "undecided"


class GradeReason(StrEnum):
    """How a verdict came about, for counting. The last three are the reasons for `undecided`."""

    EXACT = "exact"  # equal strings after normalisation
    NUMERIC = "numeric"  # equal numbers
    SYMBOLIC = "symbolic"  # equal by math-verify / sympy
    CHOICE = "choice"  # equal option letters
    PUBLISHED = "published"  # equal by the rules of a published grader
    DIFFERENT = "different"  # an answer was found and is not the gold one
    NO_ANSWER = "no_answer"  # nothing to compare
    LIMIT = "limit"  # deciding would take more operations than one answer is given: undecided
    TIMEOUT = "timeout"  # grading was killed at its limit of CPU time, twice: undecided
    CRASH = "crash"  # grading died (memory, crash), twice: undecided


UNDECIDED_REASONS = (GradeReason.LIMIT, GradeReason.TIMEOUT, GradeReason.CRASH)

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    `reasoning_content` is the `<think>` part where a data set stores it apart; templates that know
    it render it.

    `tool_calls`: {"type": "function", "function": {"name", "arguments"}}, arguments as an object.
    """

    role: Role
    content: str
    reasoning_content: str | None = None
    trained: bool = True  # False: an assistant turn that is context only
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None  # of a tool's answer
    name: str | None = None  # of the tool that answers


@dataclass(frozen=True, slots=True)
class Example:
    """One training row, whatever file format it came from.

    Exactly one of `messages` and `text` is set: `text` is an already templated string
    (reasoning_ladder, s1) whose loss part is found with `response_template`. `where` is
    `file:line`, used in every message about this row.

    >>> Example(id="a1", where="train.jsonl:1", messages=(Message("user", "1+1?"),
    Message("assistant", "2")))
    """

    id: str
    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    advantage: float | None = None
    # old log-probs of the response tokens incl. end-of-sequence
    response_logprobs: tuple[float, ...] | None = None
    # True: response ids = tokenizer(response) + [eos], no template on the answer (Rethinking SFT)
    raw_response: bool = False
    tools: tuple[dict[str, Any], ...] = ()  # JSON schemas of functions, for the template
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # of this row's rendering
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenSample:
    """One tokenised sample.

    `loss_mask[i]` says whether token i is *predicted* with loss; token 0 is never predicted.

    Worked example, prompt ids [5, 6], response ids [7, 2]: `input_ids=[5,6,7,2]`,
    `loss_mask=[0,0,1,1]`. The arrays with `_n` in their name are aligned with `input_ids`:
    `old_logprobs_n[i]` is the log-prob *of token i* (0 on the prompt).
    """

    id: str
    input_ids: np.ndarray  # int32 [N]
    loss_mask: np.ndarray  # bool [N]
    advantage: float | None = None  # one number a sample, nats-free
    # factor on the loss of each of its tokens (how RL aggregates tokens and sequences)
    loss_weight: float | None = None
    old_logprobs_n: np.ndarray | None = None  # float32 [N], natural log
    # float32 [N], from the engine that generated the sample
    rollout_logprobs_n: np.ndarray | None = None
    # int16 [N, layers, K]: the experts that the engine chose, -1 where it chose none
    routed_experts_n: np.ndarray | None = None
    ref_logprobs_n: np.ndarray | None = None  # float32 [N], from the reference model
    policy_version: int | None = None  # weights version that generated it
    group: int | None = None  # index of its prompt's group in the step

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch of one rank.

    S sequences laid end to end in T tokens (THD layout), labels already shifted inside each
    sequence.

    `labels_t[t]` is the token that position t predicts, `IGNORE_INDEX` where there is no loss
    (prompt, last token of a sequence, padding). The per-token arrays are aligned with `labels_t`:
    `old_logprobs_t[t]` is the old log-prob of `labels_t[t]`; `routed_experts_t` with the inputs.
    Padding, if any, forms the last sequences in `cu_seqlens` (their `sample_index` is -1).

    Worked example, samples [5,6,7,2] (mask 0,0,1,1) and [8,9] (mask 0,1), two padding tokens:
    input_ids_t=[5,6,7,2,8,9,0,0], labels_t=[-100,7,2,-100,9,-100,-100,-100],
    position_ids_t=[0,1,2,3,0,1,0,1], cu_seqlens=[0,4,6,8], max_seqlen=4, sample_index=[0,1,-1],
    num_tokens=6.
    """

    input_ids_t: np.ndarray  # int64 [T]
    labels_t: np.ndarray  # int64 [T]
    position_ids_t: np.ndarray  # int64 [T], restarts at 0 in each sequence
    cu_seqlens: np.ndarray  # int32 [S + 1], starts with 0, ends with T
    max_seqlen: int
    # int64 [S]: index of the sample in the data set or in the step; -1 = padding
    sample_index: np.ndarray
    num_tokens: int  # tokens that are no padding
    advantages_t: np.ndarray | None = None  # float32 [T]
    loss_weights_t: np.ndarray | None = None  # float32 [T]
    old_logprobs_t: np.ndarray | None = None  # float32 [T]
    rollout_logprobs_t: np.ndarray | None = None  # float32 [T]
    ref_logprobs_t: np.ndarray | None = None  # float32 [T]
    # int16 [T, layers, K], -1 where the engine chose none
    routed_experts_t: np.ndarray | None = None

    @property
    def num_loss_tokens(self) -> int:
        return int((self.labels_t != IGNORE_INDEX).sum())


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer. `id` is stable: given by the data, else a content hash.

    `prompt` are chat messages (rendered with the model's template) unless `prompt_text` gives a raw
    string. `gold` is what the verifier `kind` compares with (for `choice` the letter); its further
    parameters stand in `metadata`.
    """

    id: str
    prompt: tuple[Message, ...]
    gold: str
    kind: Kind = "math"
    prompt_text: str | None = None
    source: str = ""  # data set or benchmark name
    metadata: dict[str, Any] = field(default_factory=dict)
    # the row's prompt was a list of messages: TRL's reward functions then get such lists
    conversational: bool = False
    tools: tuple[dict[str, Any], ...] = ()  # JSON schemas of functions, for the template
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # of this row's rendering


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer.

    `token_ids` hold what the engine sampled, end-of-sequence included when it was sampled.

    `logprobs[i]` is the natural log-prob of `token_ids[i]` after temperature and top-k/top-p
    (vLLM's `processed_logprobs`); empty when the engine was not asked for them. Never re-tokenise
    `text`. `routed_experts`: the experts that each token of prompt and answer went through, as
    `model.moe.choices` writes them; empty when the engine was not asked for them.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    policy_version: int = 0
    routed_experts: str = ""


@dataclass(frozen=True, slots=True)
class Graded:
    """The grader's verdict on one response. `answer` is what was extracted (None if nothing was).

    `correct` is None where the verdict is undecided, exactly for the reasons limit, timeout and
    crash: count it apart from wrong, and leave the sample out of training.

    >>> Graded(None, None, GradeReason.TIMEOUT).verdict
    <Verdict.UNDECIDED: 'undecided'>
    """

    correct: bool | None
    answer: str | None
    reason: GradeReason
    detail: str = ""  # a human's hint: what was compared, or why grading was cut short

    @property
    def verdict(self) -> Verdict:
        """`correct` by name."""
        if self.correct is None:
            return Verdict.UNDECIDED
        return Verdict.CORRECT if self.correct else Verdict.WRONG


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """A problem with its n samples, their rewards and verdicts.

    All tuples have length n, same order."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    rewards: tuple[float | None, ...] = ()  # None: undecided, takes no part in training
    reward_terms: tuple[dict[str, float], ...] = ()
    graded: tuple[Graded, ...] = ()
    advantages: tuple[float, ...] = ()

    @property
    def decided_rewards(self) -> tuple[float, ...]:
        """The rewards that there are, in order."""
        return tuple(reward for reward in self.rewards if reward is not None)
