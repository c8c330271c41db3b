"""Loss and gradient norm equal those of transformers' model with losses written out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import run_ranks
from model_cases import make_folder
from train.layout_worker import NUM_SAMPLES, engine_experts, samples

COEFFICIENT, Z_COEFFICIENT = 0.1, 0.01
SIZES = (4, 8, 2)  # layers, experts, experts of a token
CASES = {
    "none": {},
    "sequence": {"aux_loss": "sequence", "aux_loss_coef": COEFFICIENT},
    "global_batch": {"aux_loss": "global_batch", "aux_loss_coef": COEFFICIENT},
    "z": {"z_loss_coef": Z_COEFFICIENT},
    "routed": {},
}


def by_transformers(folder: Path, kind: str) -> tuple[float, float]:
    """Mean cross-entropy, and the gradient norm with the losses of `kind` added."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    routed: list[torch.Tensor] = []
    given: dict[int, np.ndarray] = {}
    for layer, decoder_layer in enumerate(model.model.layers):
        decoder_layer.mlp.gate.register_forward_hook(lambda *call: routed.append(call[2][0]))
        if kind == "routed":
            decoder_layer.mlp.gate.register_forward_hook(sent(given, layer))
    nats, num_loss, logits = torch.zeros(()), 0, []  # logits[sequence][layer]: [T, E]
    for index, sample in enumerate(samples(model.config.vocab_size)[:NUM_SAMPLES]):
        routed.clear()
        experts = engine_experts(index, sample.num_tokens, SIZES)
        given.update(enumerate(experts.swapaxes(0, 1)))
        ids = torch.as_tensor(sample.input_ids).long()
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        mask = torch.as_tensor(sample.loss_mask[1:])
        nats = nats - logprobs.gather(1, ids[1:, None])[:, 0][mask].sum()
        num_loss += int(mask.sum())
        logits.append(list(routed))
    main = nats / num_loss
    (main + added(logits, kind, model.config.num_experts_per_tok)).backward()
    squares = sum((one.grad.double() ** 2).sum() for one in model.parameters())
    return float(main.detach()), float(squares) ** 0.5


def sent(given: dict[int, np.ndarray], layer: int) -> Callable[..., tuple]:
    """A hook that sends a layer's tokens to the experts of an engine."""

    def hook(_module: object, _inputs: tuple, output: tuple) -> tuple:
        experts = torch.as_tensor(given[layer]).long()
        scores = output[0].softmax(-1).gather(1, experts)
        return output[0], scores / scores.sum(-1, keepdim=True), experts

    return hook


def added(logits: list[list[torch.Tensor]], kind: str, top_k: int) -> torch.Tensor:
    total = sum(len(layers[0]) for layers in logits)
    loss = torch.zeros(())
    for layer in range(len(logits[0])):
        sequences = [layers[layer] for layers in logits]
        if kind == "z":
            loss = loss + Z_COEFFICIENT * torch.cat(sequences).logsumexp(-1).square().mean()
        if kind == "sequence":
            parts = [len(one) * balance(one, top_k) for one in sequences]
            loss = loss + COEFFICIENT * torch.stack(parts).sum() / total
        if kind == "global_batch":
            loss = loss + COEFFICIENT * balance(torch.cat(sequences), top_k)
    return loss


def balance(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """E · Σ share of choices · mean score."""
    scores, num_experts = logits.softmax(-1), logits.shape[1]
    chosen = scores.topk(top_k).indices.flatten()
    share = torch.bincount(chosen, minlength=num_experts) / len(chosen)
    return num_experts * (share * scores.mean(0)).sum()


def assert_sent(result: dict) -> None:
    """Every token went where the engine had sent it; the router agrees once in four, as chance."""
    data = [engine_experts(i, one.num_tokens, SIZES) for i, one in enumerate(samples(517))]
    for layer, load in enumerate(result["loads"][0]):
        experts = np.concatenate([one[:, layer].ravel() for one in data[:NUM_SAMPLES]])
        assert load == np.bincount(experts, minlength=8).tolist()
    assert 0.6 < result["choices"][0]["moe_differing_share"] < 0.9


def test_losses_and_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    folder = make_folder("qwen3-moe", tmp_path / "model")
    cases = [
        {"name": kind, "moe": section, "micro": 8, "steps": 1, "routed": kind == "routed"}
        for kind, section in CASES.items()
    ]
    out = tmp_path / "out.json"
    run_ranks("train/layout_worker.py", 1, str(folder), json.dumps(cases), str(out))
    results = json.loads(out.read_text())
    assert_sent(results[-1])
    for result in results:
        ((loss, norm, _),) = result["steps"]
        want_loss, want_norm = by_transformers(folder, result["name"])
        assert loss == pytest.approx(want_loss, rel=1e-5), result["name"]
        assert norm == pytest.approx(want_norm, rel=1e-4), result["name"]
