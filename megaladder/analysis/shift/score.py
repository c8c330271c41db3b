"""Both models on the same tokens.

Per-token log-probabilities, ranks and exact KL, and mean hidden states. The only analysis with
torch.

`score_rows` and `mean_features` are the two places that run a model; everything else takes their
numpy arrays. N = output tokens of a row, V = vocabulary, B = rows of a batch, T = tokens of its
longest row.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from megaladder.errors import MissingDependencyError, ModelError
from megaladder.types import Tokenizer


@dataclass(frozen=True, slots=True)
class RowScores:
    """The output tokens of one row under both models. Natural logarithms, float64."""

    token_ids_n: np.ndarray  # int64 [N]
    logprob_base_n: np.ndarray  # float64 [N]
    logprob_tuned_n: np.ndarray  # float64 [N]
    # int64 [N], 1 = the base's greedy choice (1 + number of tokens with a higher logit)
    rank_base_n: np.ndarray
    rank_tuned_n: np.ndarray  # int64 [N]
    kl_n: np.ndarray  # float64 [N], exact KL(tuned ‖ base) over the vocabulary at that position
    greedy_base_n: np.ndarray  # int64 [N], what the base would have said
    same_n: np.ndarray  # bool [N]: both models' logits are equal bit for bit

    @property
    def rank_shift_n(self) -> np.ndarray:
        """Rank − 1 under the base (0 = what the base would say, too), int64 [N].

        0 where the models do not differ at all."""
        return np.where(self.same_n, 0, self.rank_base_n - 1)


@dataclass(frozen=True)
class ModelPair:
    """Base and tuned model (transformers, eval mode) with the base's tokenizer."""

    base: Any
    tuned: Any
    tokenizer: Tokenizer
    vocab_size: int  # logits compared: the smaller of the two
    place: str  # the device and dtype, in words


SPREAD = "all GPUs"


def choose_device(device: str, dtype: str) -> tuple[str, str]:
    """Where the models go, in torch's words or `SPREAD`, and their dtype.

    Raises:
        ModelError: a GPU is asked for where there is none.
        MissingDependencyError: layers are to be spread, and accelerate is not installed.
    """
    from megaladder import platform

    if device in ("cuda", "spread") and not platform.has_cuda():
        raise ModelError(f"--device {device}: no GPU is visible here; fix: --device cpu")
    on_gpu = device != "cpu" and platform.has_cuda()
    chosen = "float32" if not on_gpu else "bfloat16"
    if device == "spread" and importlib.util.find_spec("accelerate") is None:
        raise MissingDependencyError(
            "--device spread needs accelerate; fix: pip install accelerate"
        )
    place = SPREAD if device == "spread" else str(platform.device()) if on_gpu else "cpu"
    return place, chosen if dtype == "auto" else dtype


def load_pair(base: str, tuned: str, device: str, dtype: str) -> ModelPair:
    """Loads two folders, each once.

    ModelError where one cannot be read or their tokenizers differ."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDependencyError(
            f"analyze shift needs torch and transformers ({error}); fix: pip install torch"
            " transformers"
        ) from None
    logging.disable_progress_bar()
    place, dtype = choose_device(device, dtype)
    models: list[Any] = []
    tokenizers: list[Tokenizer] = []
    for folder in (base, tuned):
        try:
            # what transformers declares is wider than what its tokenizers do
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizers.append(cast("Tokenizer", tokenizer))
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                dtype=getattr(torch, dtype),
                device_map="auto" if place == SPREAD else None,
            )
            models.append((model if place == SPREAD else model.to(place)).eval())
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded ({str(error).splitlines()[0][:300]}); fix: a Hugging"
                " Face model folder"
            ) from None
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise ModelError(
            f"{base} and {tuned} have different vocabularies: their tokens cannot be compared; fix:"
            " a model tuned from this base"
        )
    sizes = [model.get_output_embeddings().weight.shape[0] for model in models]
    return ModelPair(models[0], models[1], tokenizers[0], min(sizes), f"{place}, {dtype}")


def batches_of(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices of rows in batches of like length.

    Each holds at most `batch_tokens` with its padding, or one row."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens
        if full:
            batches.append([])
        batches[-1].append(index)
    return batches


def score_rows(
    pair: ModelPair,
    prompts: list[list[int]],
    outputs: list[list[int]],
    batch_tokens: int,
    chunk_tokens: int,
) -> list[RowScores]:
    """Scores the output tokens after each prompt (at least one token each), in the rows' order."""
    found: dict[int, RowScores] = {}
    lengths = [len(p) + len(o) for p, o in zip(prompts, outputs, strict=True)]
    for batch in batches_of(lengths, batch_tokens):
        ids = [prompts[i] + outputs[i] for i in batch]
        chosen = [outputs[i] for i in batch]
        scores = _score_batch(pair, ids, chosen, chunk_tokens)
        found |= dict(zip(batch, scores, strict=True))
    return [found[i] for i in range(len(prompts))]


def _score_batch(
    pair: ModelPair, ids: list[list[int]], outputs: list[list[int]], chunk_tokens: int
) -> list[RowScores]:
    """Rows are padded on the left: every row's output is then among the last tokens."""
    import torch

    inputs = _left_padded(pair, ids)
    keep = max(map(len, outputs)) + 1
    with torch.inference_mode():
        logits = [
            model(**_on(model, inputs), logits_to_keep=keep, use_cache=False).logits
            for model in (pair.base, pair.tuned)
        ]
        return [
            _score_row(
                [x[b, -1 - len(out) : -1, : pair.vocab_size] for x in logits], out, chunk_tokens
            )
            for b, out in enumerate(outputs)
        ]


def _score_row(logits_nv: list[Any], output: list[int], chunk_tokens: int) -> RowScores:
    import torch

    base_nv = logits_nv[0]
    chosen_n = torch.tensor(output, device=base_nv.device)
    parts = [
        _score_chunk(
            base_nv[at : at + chunk_tokens],
            logits_nv[1][at : at + chunk_tokens].to(base_nv.device),
            chosen_n[at : at + chunk_tokens],
        )
        for at in range(0, len(output), chunk_tokens)
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return RowScores(np.array(output), *columns)


def _left_padded(pair: ModelPair, ids: list[list[int]]) -> dict[str, Any]:
    """input_ids, attention_mask and position_ids, int64 [B, T] each."""
    import torch

    length = max(map(len, ids))
    pad = _pad_token(pair)
    input_ids = torch.tensor([[pad] * (length - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}


def _pad_token(pair: ModelPair) -> int:
    tokens = (pair.tokenizer.pad_token_id, pair.tokenizer.eos_token_id)
    return next((token for token in tokens if token is not None), 0)


def _on(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs where the model's first layer lives."""
    device = model.get_input_embeddings().weight.device
    return {name: value.to(device) for name, value in inputs.items()}


def _score_chunk(base_nv: Any, tuned_nv: Any, chosen_n: Any) -> tuple[np.ndarray, ...]:
    import torch

    at = chosen_n[:, None]
    base, tuned = (
        torch.log_softmax(base_nv.double(), dim=-1),
        torch.log_softmax(tuned_nv.double(), dim=-1),
    )
    kl = (tuned.exp() * (tuned - base)).sum(dim=-1)
    ranks = [(logits > logits.gather(1, at)).sum(dim=1) + 1 for logits in (base_nv, tuned_nv)]
    columns = (
        base.gather(1, at)[:, 0],
        tuned.gather(1, at)[:, 0],
        *ranks,
        kl,
        base_nv.argmax(dim=1),
        (base_nv == tuned_nv).all(dim=1),
    )
    return tuple(column.cpu().numpy() for column in columns)


def mean_features(
    pair: ModelPair, texts_ids: list[list[int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean hidden state of each text and layer under both models, float64 [L, K, H] each.

    Texts are padded on the left to `length` and the mean runs over all positions, as published; a
    text of that length or more stands alone.
    """
    import torch

    pad = _pad_token(pair)
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with torch.inference_mode():
        for ids in texts_ids:
            num_pad = max(0, length - len(ids))
            inputs = {
                "input_ids": torch.tensor([[pad] * num_pad + ids]),
                "attention_mask": torch.tensor([[0] * num_pad + [1] * len(ids)]),
            }
            for model, out in zip((pair.base, pair.tuned), features, strict=True):
                states = model(
                    **_on(model, inputs), output_hidden_states=True, logits_to_keep=1
                ).hidden_states
                means = [state[0].double().mean(dim=0).cpu().numpy() for state in states]
                out.append(np.stack(means))
    return tuple(np.stack(out, axis=1) for out in features)  # type: ignore[return-value]
