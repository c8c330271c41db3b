"""Tiny random Hugging Face folders with a real tokenizer, built by transformers and tokenizers;
vLLM and we load them as any other.

folder = build_tiny_model(tmp_path / "model")                       # qwen3, 2 layers, byte-level
BPE tokenizer, ChatML template folder = build_tiny_model(tmp_path / "model", "llama", tie=True)    #
or qwen2
"""

from __future__ import annotations

import json
from pathlib import Path

# ids 0, 1, 2, and the last two
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content +"
    " '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n'"
    " }}{% endif %}"
)
_CORPUS = (
    "What is 12 + 30? The answer is \\boxed{42}. Let x be a number such that x = 7.",
    (
        "Please reason step by step, and put your final answer within \\boxed{}. Wait, therefore"
        " the final answer is 0123456789."
    ),
    "Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18 every day. #### 18",
)


def build_tokenizer(folder: Path, num_merges: int = 200) -> Path:
    """Byte-level BPE with ChatML special tokens and template: any text round-trips. About 400
    tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL_TOKENS) + 256 + num_merges,
        special_tokens=list(SPECIAL_TOKENS[:3]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer.add_tokens(list(SPECIAL_TOKENS[3:]))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return Path(folder)


_EXPERTS = {
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "glm4_moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 0,
        "num_mtp_layers": 0,
    },
}


def build_tiny_model(
    folder: Path,
    family: str = "qwen3",
    *,
    num_layers: int = 2,
    hidden: int = 64,
    tie: bool = False,
    seed: int = 0,
) -> Path:
    """A random model (fp32, about 0.2 M parameters) with its tokenizer. Same arguments, same
    bytes."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Glm4MoeConfig,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    head_dim = max(32, hidden // 4)  # vLLM's CPU attention takes multiples of 32
    classes = {
        "qwen3": Qwen3Config,
        "qwen2": Qwen2Config,
        "llama": LlamaConfig,
        "qwen3_moe": Qwen3MoeConfig,
        "glm4_moe": Glm4MoeConfig,
    }
    config = classes[family](**sizes, **_EXPERTS.get(family, {}), head_dim=head_dim)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    generation = {
        "eos_token_id": [tokenizer.eos_token_id, tokenizer.pad_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    (Path(folder) / "generation_config.json").write_text(json.dumps(generation))
    return Path(folder)


def build_bare_qwen3(
    folder: Path, *, vocab_size: int = 517, hidden: int = 64, num_layers: int = 4
) -> Path:
    """A random tied Qwen3 without a tokenizer, for tests that feed token ids; an odd vocabulary by
    default. Same arguments, same bytes."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
