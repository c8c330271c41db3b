"""Both models on the same tokens: per-token log-probabilities, ranks and exact KL, and mean hidden
states. The only analysis with torch.

`score_row` and `mean_features` are the two places that run a model; everything else takes their
numpy arrays. transformers on CPU here. N = output tokens of a row, V = vocabulary.
"""

from __future__ import annotations

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
        """rank − 1 under the base (0 = what the base would say, too), int64 [N]; 0 where the models
        do not differ at all."""
        return np.where(self.same_n, 0, self.rank_base_n - 1)


@dataclass(frozen=True)
class ModelPair:
    """Base and tuned model (transformers, eval mode, CPU) with the base's tokenizer."""

    base: Any
    tuned: Any
    tokenizer: Tokenizer
    vocab_size: int  # logits compared: the smaller of the two


def load_pair(base: str, tuned: str, dtype: str) -> ModelPair:
    """Loads two folders. ModelError where one cannot be read or their tokenizers differ."""
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
    models: list[Any] = []
    tokenizers: list[Tokenizer] = []
    for folder in (base, tuned):
        try:
            # what transformers declares is wider than what its tokenizers do
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizers.append(cast("Tokenizer", tokenizer))
            models.append(
                AutoModelForCausalLM.from_pretrained(
                    folder, local_files_only=True, dtype=getattr(torch, dtype)
                ).eval()
            )
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
    return ModelPair(models[0], models[1], tokenizers[0], min(sizes))


def score_row(
    pair: ModelPair, prompt_ids: list[int], output_ids: list[int], chunk_tokens: int
) -> RowScores:
    """Scores the output tokens after the prompt (at least one token each)."""
    import torch

    num_out = len(output_ids)
    ids = torch.tensor([prompt_ids + output_ids])
    chosen = torch.tensor(output_ids)
    with torch.inference_mode():
        logits = [
            model(ids, logits_to_keep=num_out + 1).logits[0, :-1, : pair.vocab_size]
            for model in (pair.base, pair.tuned)
        ]
        parts = [
            _score_chunk(*(x[at : at + chunk_tokens] for x in (*logits, chosen)))
            for at in range(0, num_out, chunk_tokens)
        ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return RowScores(np.array(output_ids), *columns)


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
    return tuple(column.numpy() for column in columns)


def mean_features(
    pair: ModelPair, texts_ids: list[list[int]], padded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean hidden state of each text and layer under both models, float64 [L, K, H] each.

    `padded`: texts are padded on the left to the longest and the mean runs over all positions, as
    published; else over the text's own.
    """
    import torch

    length = max(map(len, texts_ids))
    pad = next(
        (t for t in (pair.tokenizer.pad_token_id, pair.tokenizer.eos_token_id) if t is not None), 0
    )
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with torch.inference_mode():
        for ids in texts_ids:
            num_pad = length - len(ids) if padded else 0
            inputs = torch.tensor([[pad] * num_pad + ids])
            mask = torch.tensor([[0] * num_pad + [1] * len(ids)])
            for model, out in zip((pair.base, pair.tuned), features, strict=True):
                states = model(
                    inputs, attention_mask=mask, output_hidden_states=True, logits_to_keep=1
                ).hidden_states
                out.append(torch.stack([state[0].double().mean(dim=0) for state in states]).numpy())
    return tuple(np.stack(out, axis=1) for out in features)  # type: ignore[return-value]
