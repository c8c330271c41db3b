"""A small Qwen3 to start from, dense or a mixture of experts.

Config.json, a tokenizer trained on your data, random weights (or none: `model.init: random` draws
them).

    python -m megaladder.tools.make_tiny_model --data train.jsonl --out runs/tiny --vocab-size 512
    --hidden 128 --layers 4

The tokenizer is byte-level BPE with single digits (numbers are read digit by digit), ChatML and
`<think>` tokens; any text round-trips. Defaults are the model of `make quickstart`, 0.8 million
parameters; `--experts 8 --ffn 192` is that of `make quickstart-moe`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from megaladder.config.base import StrictModel
from megaladder.config.resolve import resolve
from megaladder.console import doing
from megaladder.errors import ConfigError, DataError, MegaladderError
from megaladder.run_dir import atomic_write, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from megaladder.model.hf_config import ModelShape

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK_TOKENS = ("<think>", "</think>")
Positive = Annotated[int, Field(ge=1)]


class TinyModelConfig(StrictModel):
    """Write a folder with a small Qwen3's config.json and a tokenizer trained on the data."""

    data: str
    """File whose texts the tokenizer learns from (JSONL, JSON, parquet, …)."""
    out: str
    """Folder to write."""
    vocab_size: Annotated[int, Field(ge=300)] = 512
    """Tokens at most, the 256 bytes and 5 special ones included."""
    hidden: Positive = 128
    """Hidden size."""
    layers: Positive = 4
    """Decoder layers."""
    heads: Positive = 4
    """Attention heads; must divide hidden."""
    kv_heads: Positive = 2
    """Key/value heads; must divide heads."""
    ffn: Positive = 384
    """Feed-forward size; with experts that of each."""
    experts: Annotated[int, Field(ge=0)] = 0
    """Experts of every layer (Qwen3-MoE). 0 = a dense model."""
    experts_per_token: Annotated[int, Field(ge=2)] = 2
    """Experts that a token is sent to. Read with experts."""
    max_length: Positive = 4096
    """Positions (max_position_embeddings)."""
    tied: bool = True
    """One matrix for embedding and output."""
    weights: bool = True
    """Also write random weights, those that `model.init: random` would draw from this seed."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of the weights."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> TinyModelConfig:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} must divide hidden {self.hidden}, kv_heads {self.kv_heads}"
                " must divide heads"
            )
        if self.experts and self.experts < self.experts_per_token:
            raise ValueError(
                f"experts {self.experts} are fewer than the {self.experts_per_token} that a token is"
                " sent to; fix: more experts, or 0 for a dense model"
            )
        return self


def write_tiny_model(config: TinyModelConfig) -> int:
    """Writes the folder; returns the number of parameters."""
    from megaladder.model.hf_config import model_shape

    out = Path(config.out)
    if out.is_file():
        raise ConfigError(f"--out {out}: is a file; fix: a folder")
    tokenizer = train_tokenizer(texts(config.data), config.vocab_size)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    settings = _config_json(config, tokenizer)
    described = model_shape(settings)
    if config.weights:
        write_random_weights(out, described, config.seed)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    atomic_write(
        out / "generation_config.json", to_json(generation, sort_keys=True, indent=2) + "\n"
    )
    atomic_write(out / "config.json", to_json(settings, sort_keys=True, indent=2) + "\n")
    return described.num_parameters


def _config_json(config: TinyModelConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What transformers writes for the model."""
    from transformers import Qwen3Config, Qwen3MoeConfig

    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.hidden // config.heads,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.experts:
        described, name = (
            Qwen3MoeConfig(
                **sizes,
                num_experts=config.experts,
                num_experts_per_tok=config.experts_per_token,
                moe_intermediate_size=config.ffn,
                norm_topk_prob=True,
            ),
            "Qwen3MoeForCausalLM",
        )
    else:
        described, name = Qwen3Config(**sizes), "Qwen3ForCausalLM"
    return {**described.to_dict(), "architectures": [name], "dtype": "float32"}


def write_random_weights(out: Path, shape: ModelShape, seed: int) -> None:
    """Writes model.safetensors in fp32.

    Every tensor is drawn as a trainer with `model.init: random` and `train.seed` would."""
    from safetensors.torch import save

    from megaladder.checkpoints_conv.families import random_tensors

    source = random_tensors(shape, seed)
    tensors = {name: source.read(name).contiguous() for name in source.shapes}
    atomic_write(out / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def texts(path: str) -> Iterator[str]:
    """Every string of every row, nested ones too."""
    from megaladder.data.read import BadRow
    from megaladder.data.sources.source import open_source

    for row in open_source(path).rows():
        if isinstance(row, BadRow):
            raise row
        yield from _strings(row.data)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def train_tokenizer(lines: Iterator[str], vocab_size: int) -> Any:
    """Byte-level BPE over `lines` as a transformers tokenizer with the default chat template.

    Same lines, same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from megaladder.data.chat.tokenizer import DEFAULT_CHAT_TEMPLATE

    tokenizer = Tokenizer(models.BPE())
    digits, space = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, space])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens(list(THINK_TOKENS))
    if tokenizer.get_vocab_size() < len(SPECIAL_TOKENS) + 256:
        raise DataError("the data has no text to train a tokenizer on; fix: --data")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    return fast


def main(args: list[str]) -> int:
    try:
        config = resolve(
            TinyModelConfig, args, "python -m megaladder.tools.make_tiny_model", takes_yaml=False
        )
        with doing("making a tiny model"):
            num_parameters = write_tiny_model(config)
    except MegaladderError as error:
        print(f"make_tiny_model: {error}", file=sys.stderr)
        return error.exit_status
    weights = "random weights" if config.weights else "no weights"
    kind = "Qwen3-MoE" if config.experts else "Qwen3"
    print(f"{config.out}: {kind} of {num_parameters:,} parameters with its tokenizer, {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
