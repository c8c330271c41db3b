"""A step asks the device nothing between its first micro-batch and the gradient norm, and touches
every gradient once a micro-batch and once in the reduction: counted below autograd on a CPU.

A pass over all gradients of a 14B model costs 8.7 ms on an H200, a question a stop of the host's
run-ahead: neither shows in any result, so they are counted.
"""

import json

import pytest
from distributed import run_ranks
from tiny_models import build_bare_qwen3

CASES = [
    {"name": "sft", "worker": "sft"},
    {"name": "sft-gspo", "worker": "sft", "loss": "gspo"},
    {"name": "dapo", "worker": "grpo", "objective": "dapo"},
    {"name": "gspo", "worker": "grpo", "objective": "gspo"},
    {"name": "cispo-kl", "worker": "grpo", "objective": "cispo-kl"},
]


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    build_bare_qwen3(folder / "model", vocab_size=320, hidden=32, num_layers=2)
    out = folder / "counts.json"
    arguments = (str(folder / "model"), json.dumps(CASES), str(out))
    run_ranks("train/step_counts_worker.py", 1, *arguments)
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
def test_micro_batches_ask_the_device_nothing(counts, name):
    """Left over: the CPU's own attention, and the look at the backward's factor, which a GPU defers
    (`linear_loss._Factors`)."""
    half = counts[name]["forward and backward"]
    asked = {key: count for key, count in half.items() if key.startswith("question")}
    assert {key.split()[2] for key in asked} <= {"portable.py", "linear_loss.py"}
    factors = asked.get("question _local_scalar_dense linear_loss.py", 0)
    assert factors == (0 if name.endswith("gspo") else counts[name]["micro_batches"])


@pytest.mark.parametrize("name", [case["name"] for case in CASES])
def test_gradients_are_written_once_a_micro_batch_and_once_reduced(counts, name):
    """The model ties its embeddings: the head writes their gradient, the embedding adds a row for
    each token. No pass divides by the number of tokens."""
    found = counts[name]
    expected = found["micro_batches"] * found["gradients"] + found["embedded"] + 1.0
    assert found["forward and backward"]["written"] == pytest.approx(expected, rel=1e-6)
    assert found["optimizer"].get("written", 0.0) <= 1.0


@pytest.mark.parametrize(("name", "most"), [("sft", 28), ("dapo", 162), ("cispo-kl", 148)])
def test_the_head_launches_few_operations_a_micro_batch(counts, name, most):
    """Forward and backward, loss and metrics. Each costs some microseconds whatever its size; views
    and allocations cost none, a kernel of ours counts as one."""
    found = counts[name]
    assert 0 < found["forward and backward"]["head"] <= most * found["micro_batches"]
