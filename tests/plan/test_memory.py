"""The memory model against hand formulas and published arithmetic: Qwen3-14B, Bridge's 6 + 12/dp
bytes a parameter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from model_cases import CASES, transformers_config

from megaladder.checkpoints_conv.families import Entry, name_table
from megaladder.kernels.linear_common import LEAST_SCRATCH
from megaladder.model.hf_config import ModelShape, model_shape
from megaladder.plan.hardware import find_model, known_models
from megaladder.plan.layout import OURS, PlannedLayout, Work
from megaladder.plan.memory import (
    FRAMEWORK,
    HEAD_SCRATCH,
    SLEEPING_ENGINE,
    estimate_memory,
    layer_activation_bytes,
    micro_batches_in_flight,
    stage_layers,
    stage_memory,
    stage_parameters,
)

WORK = Work(seq_length=4096, global_batch_size=256)
# Parameters in billions as the model cards round them.
PUBLISHED = {
    "Qwen3-0.6B": 0.596,
    "Qwen3-1.7B": 1.72,
    "Qwen3-4B": 4.02,
    "Qwen3-8B": 8.19,
    "Qwen3-14B": 14.77,
    "Qwen3-32B": 32.76,
    "Qwen3-30B-A3B": 30.53,
    "Qwen3-235B-A22B": 235.09,
    "Qwen2.5-0.5B": 0.494,
    "Qwen2.5-1.5B": 1.54,
    "Qwen2.5-3B": 3.09,
    "Qwen2.5-7B": 7.62,
    "Qwen2.5-14B": 14.77,
    "Qwen2.5-32B": 32.76,
    "Qwen2.5-72B": 72.71,
    "Llama-2-7B": 6.74,
    "Llama-2-13B": 13.02,
    "Llama-2-70B": 68.98,
    "Llama-3-8B": 8.03,
    "Llama-3-70B": 70.55,
    "Llama-3.1-405B": 405.85,
    "Llama-3.2-1B": 1.24,
    "Llama-3.2-3B": 3.21,
    "Mistral-Nemo-12B": 12.25,
    "InternLM2.5-20B": 19.86,
}


@pytest.fixture
def shape() -> ModelShape:
    return find_model("Qwen3-14B")


def test_known_models_have_their_published_sizes() -> None:
    assert set(PUBLISHED) == set(known_models())
    for name, billions in PUBLISHED.items():
        assert find_model(name).num_parameters / 1e9 == pytest.approx(billions, rel=5e-3), name


def test_of_experts_only_the_chosen_ones_count_as_work() -> None:
    """Model cards: 3.3 G active of 30.5 G, 22 G of 235 G, embeddings included."""
    for name, billions in (("Qwen3-30B-A3B", 3.35), ("Qwen3-235B-A22B", 22.2)):
        shape = find_model(name)
        active = shape.forward_flops(1, 0, 1) / 2 + shape.vocab_size * shape.hidden_size
        assert active / 1e9 == pytest.approx(billions, rel=1e-2), name
        assert shape.num_active_parameters / 1e9 == pytest.approx(billions, rel=1e-2), name


def test_states_of_experts_by_hand() -> None:
    """Qwen3-30B-A3B, 8 GPUs, ep 8: 28.99 G weights of experts / 8, of which each GPU has its own
    optimizer; 1.54 G others on each, their optimizer over 8."""
    shape, layout = find_model("Qwen3-30B-A3B"), PlannedLayout(dp=8, ep=8)
    experts = 48 * 128 * 3 * 2048 * 768
    others = shape.num_parameters - experts
    states = estimate_memory(shape, layout, WORK)
    assert states.weights == 2 * (others + experts // 8)
    assert states.gradients == 2 * states.weights
    assert states.optimizer == 12 * others // 8 + 12 * experts // 8
    assert states.states / 1024**3 == pytest.approx(71.5, abs=0.1)
    # two copies of each expert's eighth: half of its optimizer each
    two = estimate_memory(shape, PlannedLayout(dp=16, ep=8), WORK)
    assert two.optimizer == 12 * others // 16 + 12 * experts // 16
    # the same weights, cut instead of shared out
    cut = estimate_memory(shape, PlannedLayout(dp=8, ep=4, etp=2), WORK)
    assert (cut.weights, cut.optimizer) == (states.weights, states.optimizer)


@pytest.mark.parametrize("case", ["qwen3-moe", "qwen3-moe-mixed", "glm4-moe"])
def test_states_are_those_of_the_tensors(case: str) -> None:
    shape = model_shape(transformers_config(case).to_dict())
    entries = list(name_table(shape).entries())
    for tp, etp, pp, ep in ((1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 2, 1), (1, 1, 2, 2)):
        held = []
        for stage in range(pp):
            parts = [
                math.prod(entry.mapping.local_shape(tp if entry.expert is None else etp))
                / (1 if entry.expert is None else ep)
                for entry in entries
                if _stage_of(entry, shape, pp) == stage
            ]
            held.append(sum(parts))
        layout = PlannedLayout(tp=tp, pp=pp, dp=2, ep=ep, etp=etp)
        weights = [stage_memory(shape, layout, WORK, stage).weights for stage in range(pp)]
        assert weights == [2 * size for size in held]


def _stage_of(entry: Entry, shape: ModelShape, pp: int) -> int:
    if entry.layer is not None:
        return entry.layer * pp // shape.num_layers
    return 0 if entry.megatron.startswith("embedding") else pp - 1


def test_activations_of_experts_by_hand() -> None:
    """Qwen3-30B-A3B, bf16, a token: norms and residuals 2·2048, router's input 2048, attention
    4·4096 + 2·512 + 512, and for each of 8 experts 2048 in, 2·768 halves, 768 product; router's
    logits and scores 2·128 in fp32. A load of 1.5 times the mean makes the experts' part so."""
    shape = find_model("Qwen3-30B-A3B")
    layout = PlannedLayout(dp=8, ep=8)
    attention = 2 * 2048 + 2 * 2048 + 3 * 4096 + 3 * 512
    expert = 2048 + 3 * 768
    found = layer_activation_bytes(shape, layout, WORK, sparse=True)
    assert found == 2 * (attention + 8 * expert) + 2 * 4 * 128
    busy = layer_activation_bytes(shape, layout, replace(WORK, imbalance=1.5), sparse=True)
    assert busy - found == 2 * 4 * expert
    # of tp ranks each routes its own tokens
    two = PlannedLayout(tp=2, dp=4, ep=8)
    assert layer_activation_bytes(shape, two, WORK, sparse=True) == found / 2


def test_qwen3_14b_by_hand(shape) -> None:
    """Per layer: q, o 2·5120·5120, k, v 2·5120·1024, MLP 3·5120·17408, norms 2·5120 + 2·128.
    Without the input embedding 13.99 G matter."""
    layer = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 17408 + 2 * 5120 + 2 * 128
    assert (
        shape.num_parameters
        == 40 * layer + 2 * 151936 * 5120 + 5120
        == pytest.approx(14.77e9, rel=1e-3)
    )
    assert shape.flops_per_token(0) == pytest.approx(83.9e9, rel=2e-3)
    # 5.0 G, causal
    assert shape.flops_per_token(4096) - shape.flops_per_token(0) == 6 * 40 * 4096 * 40 * 128


def test_state_bytes_are_the_published_ones(shape) -> None:
    one = estimate_memory(shape, PlannedLayout(dp=8), WORK)
    assert (
        one.states
        == pytest.approx((6 + 12 / 8) * shape.num_parameters, rel=1e-9)
        == pytest.approx(111e9, rel=0.01)
    )
    with_cp = estimate_memory(shape, PlannedLayout(dp=4, cp=2), WORK)
    assert with_cp.states == one.states  # states are sharded over context-parallel ranks too
    fp32 = estimate_memory(shape, PlannedLayout(), replace(WORK, precision="fp32"))
    assert fp32.states == 16 * shape.num_parameters
    lora = estimate_memory(shape, PlannedLayout(), replace(WORK, lora=True))
    assert (lora.gradients, lora.optimizer, lora.weights) == (0, 0, one.weights)


def test_fp8_keeps_two_more_copies_of_the_layers_and_smaller_activations(shape) -> None:
    bf16, fp8 = (
        estimate_memory(shape, PlannedLayout(dp=8), replace(WORK, precision=precision))
        for precision in ("bf16", "fp8")
    )
    layers = shape.num_parameters - 2 * 151936 * 5120 - 5120
    assert (bf16.fp8_copies, fp8.fp8_copies) == (0, 2 * layers)
    assert fp8.activations < bf16.activations


def test_what_a_run_may_choose_changes_the_states(shape) -> None:
    """bf16 moments and a 16-bit master copy: 6 bytes instead of 12. FP8 weights alone: 2 bytes of
    the layers instead of 2 + 2."""
    small = estimate_memory(
        shape, PlannedLayout(dp=8), WORK, software=replace(OURS, optimizer_bytes=6.0)
    )
    assert small.optimizer == pytest.approx(6 / 8 * shape.num_parameters, rel=1e-9)
    fp8 = replace(WORK, precision="fp8")
    beside, alone = (
        estimate_memory(shape, PlannedLayout(dp=8), fp8, software=replace(OURS, fp8_params=only))
        for only in (False, True)
    )
    assert beside.states - alone.states == 2 * (shape.num_parameters - 2 * 151936 * 5120 - 5120)


def test_tensor_parallelism_divides_state_and_activations(shape) -> None:
    one, four = (estimate_memory(shape, PlannedLayout(tp=tp), WORK) for tp in (1, 4))
    assert four.weights == pytest.approx(one.weights / 4, rel=1e-3)  # norms are not split
    assert (
        layer_activation_bytes(shape, PlannedLayout(tp=4), WORK)
        == layer_activation_bytes(shape, PlannedLayout(), WORK) / 4
    )
    unsplit = layer_activation_bytes(shape, PlannedLayout(tp=4, sequence_parallel=False), WORK)
    assert unsplit == 2 * (
        4 * 5120 + (5120 + 17408 + 5120 + 2 * 1024 + 5120 + 1024 + 2 * 17408) / 4
    )


def test_activations_per_token_and_layer(shape) -> None:
    """Norms 4·5120, q k v o 128·(2·40 + 2·8), q and k before their norms 128·48, MLP 3·17408:
    91,136 values of two bytes."""
    values = 4 * 5120 + 128 * (2 * 40 + 2 * 8) + 128 * 48 + 3 * 17408
    assert layer_activation_bytes(shape, PlannedLayout(), WORK) == 2 * values == 2 * 91_136
    working = 2 * (2 * 5120 + 3 * 17408)
    assert estimate_memory(shape, PlannedLayout(), WORK).activations == 4096 * (
        40 * 2 * values + working
    )
    full = estimate_memory(shape, PlannedLayout(recompute="full"), WORK)
    assert full.activations == 4096 * (40 * 2 * 5120 + working + 2 * values)
    assert estimate_memory(shape, PlannedLayout(cp=4), WORK).activations == 1024 * (
        40 * 2 * values + working
    )


def test_pipeline_stages_keep_as_many_micro_batches_as_are_in_flight() -> None:
    """1F1B: the first of pp stages holds pp, the last one; interleaving adds (pp-1)/(pp·vpp); never
    more than the step has."""
    many, few = Work(4096, 256), Work(4096, 2)
    assert [micro_batches_in_flight(PlannedLayout(pp=4), many, stage) for stage in range(4)] == [
        4,
        3,
        2,
        1,
    ]
    assert micro_batches_in_flight(PlannedLayout(pp=4, vpp=5), many, 0) == pytest.approx(
        4 * (1 + 3 / 20)
    )
    assert [
        micro_batches_in_flight(PlannedLayout(pp=2, vpp=2), many, stage) for stage in (0, 1)
    ] == [5 / 2, 3 / 2]
    assert micro_batches_in_flight(PlannedLayout(pp=4), few, 0) == 2


def test_stages_share_layers_and_embeddings(shape) -> None:
    layout = PlannedLayout(pp=4)
    parameters = [stage_parameters(shape, layout, stage).total for stage in range(4)]
    assert sum(parameters) == shape.num_parameters
    tied = find_model("Qwen3-4B")
    both_ends = sum(stage_parameters(tied, PlannedLayout(pp=2), stage).total for stage in range(2))
    # each end holds a copy of the tied table
    assert both_ends == tied.num_parameters + tied.vocab_size * tied.hidden_size
    assert [stage_layers(126, 8, stage) for stage in (0, 7)] == [16, 14]


def test_the_head_does_not_grow_with_the_vocabulary(shape) -> None:
    """A chunk of logits within its budget and the hidden states with their gradient, not 2 · T ·
    V."""
    head = estimate_memory(shape, PlannedLayout(), WORK).head
    assert head == HEAD_SCRATCH + 4096 * (2 * 5120 * 2 + 16)
    assert head < 2 * 4096 * 151936 * 4 / 3
    assert HEAD_SCRATCH == LEAST_SCRATCH


def test_reserve_and_engine(shape) -> None:
    alone, beside = (
        estimate_memory(shape, PlannedLayout(dp=8), WORK, colocated_engine=engine)
        for engine in (False, True)
    )
    assert beside.total - alone.total == SLEEPING_ENGINE
    assert alone.reserve == FRAMEWORK + int(0.05 * (alone.states + alone.activations + alone.head))
    assert (
        alone.total
        == sum(size for part, size in alone.by_part().items() if part != "total")
        == alone.by_part()["total"]
    )


def test_a_published_peak_is_met() -> None:
    """ms-swift's Qwen2.5-14B at TP4 DP2 and 8,192 tokens: 64 GiB a GPU; its head keeps fp32 logits
    and their gradient."""
    shape = find_model("Qwen2.5-14B")
    estimate = estimate_memory(
        shape, PlannedLayout(tp=4, dp=2, recompute="selective"), Work(8192, 16)
    )
    total = estimate.total - estimate.head + 2 * 4 * 8192 * shape.vocab_size / 4
    assert total / 1024**3 == pytest.approx(64, rel=0.05)


@pytest.mark.parametrize("case", [case for case in CASES if "moe" not in case])
def test_parameters_of_a_rank_are_those_that_its_tensors_have(case: str) -> None:
    shape = model_shape(transformers_config(case).to_dict())

    table = name_table(shape)
    for tp in (1, 2):
        for pp in (1, 2):
            for stage in range(pp):
                entries = [e for e in table.entries() if _stage_of(e, shape, pp) == stage]
                if shape.tied and pp > 1 and stage == pp - 1:
                    entries.append(table.tied_output())
                held = sum(math.prod(entry.mapping.local_shape(tp)) for entry in entries)
                layout = PlannedLayout(tp=tp, pp=pp)
                assert stage_parameters(shape, layout, stage).total == held
