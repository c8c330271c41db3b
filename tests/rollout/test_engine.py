"""The engine's promises, on the fake: same seeds, same samples; restarts counted and bounded; stale
weights never generate."""

from __future__ import annotations

import pytest

from megaladder.errors import ConfigError, EngineError
from megaladder.rollout.engine import Engine, FileWeights, SamplingParams, expand, sample_seed
from megaladder.rollout.fake_engine import FakeEngine, Faults
from megaladder.types import Completion, FinishReason

PROMPTS = [(5, 6, 7), (8, 9), (10,)]


class WordTokenizer:
    """One id a character."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in token_ids)


def test_samples_do_not_depend_on_the_batch():
    params = SamplingParams(n=4, seed=7, logprobs=True)
    together = FakeEngine().generate(PROMPTS, params)
    alone = [FakeEngine().generate([prompt], params)[0] for prompt in reversed(PROMPTS)][::-1]
    assert together == alone
    # all samples differ
    assert len({completion.token_ids for group in together for completion in group}) == 12
    later = [
        completion
        for _, completion in FakeEngine().stream(expand(PROMPTS[1], params, samples=(2, 3)))
    ]
    assert later == together[1][2:]
    assert isinstance(FakeEngine(), Engine)


def test_sample_seed_is_pinned():
    """Stored runs depend on it: the value never changes."""
    assert sample_seed(42, (1, 2, 3), 0) == 0x2A0F7B7FB6FFE8FF
    assert sample_seed(42, (1, 2, 3), 0) != sample_seed(42, (1, 2), 30)
    assert sample_seed(42, (12, 3), 0) != sample_seed(42, (1, 23), 0)


@pytest.mark.parametrize("faults", [Faults(fail_at=(5,)), Faults(hang_at=(5,), hang_s=0.01)])
def test_one_failure_is_healed_without_loss(faults):
    params = SamplingParams(n=3, seed=1)
    broken = FakeEngine(faults=faults)
    assert broken.generate(PROMPTS, params) == FakeEngine().generate(PROMPTS, params)
    assert broken.restarts == 1
    assert broken.num_calls == 9 + 1  # only the failed completion was made again


def test_second_failure_ends_the_call_with_status_3():
    engine = FakeEngine(faults=Faults(fail_at=(2, 4)))
    done = []
    with pytest.raises(
        EngineError, match=r"failed 2 times.*fake engine failed at completion 4"
    ) as error:
        for index, _ in engine.stream(expand(PROMPTS[0], SamplingParams(n=5, seed=1))):
            done.append(index)
    assert error.value.exit_status == 3
    assert done == [0, 1]  # what was finished has been handed over
    with pytest.raises(EngineError, match="1 restarts allowed"):
        FakeEngine(faults=Faults(die_from=1)).generate(PROMPTS, SamplingParams())


def test_versions_sleep_and_stale_weights():
    engine = FakeEngine()
    assert engine.generate(PROMPTS, SamplingParams())[0][0].policy_version == 0
    engine.update_weights("step_1", 1)
    assert {
        c.policy_version
        for group in engine.generate(PROMPTS, SamplingParams(n=2), expect_version=1)
        for c in group
    } == {1}
    with pytest.raises(EngineError, match="holds weights version 1, asked for 2"):
        engine.generate(PROMPTS, SamplingParams(), expect_version=2)
    with pytest.raises(EngineError, match="versions only grow"):
        engine.update_weights(FileWeights("step_0"), 0)
    engine.sleep(1)
    with pytest.raises(EngineError, match="sleeps"):
        engine.generate(PROMPTS, SamplingParams())
    engine.wake()
    assert engine.generate(PROMPTS, SamplingParams())
    engine.sleep(2)
    engine.wake(["weights"])
    with pytest.raises(EngineError, match="sleeps"):
        engine.generate(PROMPTS, SamplingParams())
    engine.wake(["kv_cache"])
    with pytest.raises(EngineError, match="dropped"):
        engine.generate(PROMPTS, SamplingParams())
    assert not engine.health().ok
    engine.update_weights("step_2", 2)
    assert engine.generate(PROMPTS, SamplingParams(), expect_version=2)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(PROMPTS, SamplingParams())


def test_restart_gives_the_last_weights_again():
    engine = FakeEngine(faults=Faults(fail_at=(2,)))
    engine.update_weights("step_5", 5)
    groups = engine.generate(PROMPTS, SamplingParams())
    assert engine.loaded == ["step_5", "step_5"]
    assert {group[0].policy_version for group in groups} == {5}


class OnceOnly:
    """A transport that cannot send again."""

    resendable = False

    def send(self, client) -> None: ...


def test_restart_without_resendable_weights_refuses_to_go_on():
    engine = FakeEngine(faults=Faults(fail_at=(2,)))
    engine.update_weights(OnceOnly(), 3)
    with pytest.raises(EngineError, match="sends only once"):
        engine.generate(PROMPTS, SamplingParams())


def test_responder_and_truncation():
    engine = FakeEngine(responder=lambda request: "abcdef", tokenizer=WordTokenizer())
    whole, cut = (
        engine.generate([(1,)], SamplingParams(max_tokens=limit, logprobs=True))[0][0]
        for limit in (6, 4)
    )
    assert (whole.text, whole.finish_reason, len(whole.logprobs)) == (
        "abcdef",
        FinishReason.STOP,
        6,
    )
    assert (cut.text, cut.finish_reason, cut.token_ids) == (
        "abcd",
        FinishReason.LENGTH,
        (97, 98, 99, 100),
    )
    given = Completion((1, 2), "x", FinishReason.STOP)
    assert (
        FakeEngine(responder=lambda request: given).generate([(1,)], SamplingParams())[0][0]
        is given
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens 5"),
        ({"stop": ("",)}, "empty string"),
    ],
)
def test_impossible_sampling_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**values)
    with pytest.raises(ConfigError, match="no tokens"):
        FakeEngine().generate([()], SamplingParams())
