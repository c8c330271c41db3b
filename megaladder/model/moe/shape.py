"""What a config.json says of a model's experts. No torch.

Layers with experts are called sparse, the others dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megaladder.errors import ModelError
from megaladder.model.families.fields import Fields


@dataclass(frozen=True, slots=True)
class MoeShape:
    """The numbers of a mixture of experts; sizes in elements.

    sparse_layers: which layers have experts. ffn_hidden_size: of one expert; shared_ffn_size: of
    the expert that every token passes through, 0 for none. score: how the router turns logits into
    scores. normalized: the chosen experts' scores are divided by their sum, then multiplied with
    `scale`. bias: one number an expert is added to its score where experts are chosen, not where
    they are weighted. groups, top_groups: experts are chosen out of the best `top_groups` of
    `groups` groups.
    """

    sparse_layers: tuple[bool, ...]
    num_experts: int
    top_k: int
    ffn_hidden_size: int
    score: str = "softmax"
    normalized: bool = True
    scale: float = 1.0
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    shared_ffn_size: int = 0

    @property
    def num_sparse(self) -> int:
        """Layers with experts."""
        return sum(self.sparse_layers)

    @property
    def mixed(self) -> bool:
        """Whether some layers are dense: a checkpoint then names each layer by its index."""
        return not all(self.sparse_layers)

    def layer_parameters(self, hidden_size: int) -> int:
        """Weights of one sparse layer's router and experts."""
        return sum(self.layer_parts(hidden_size, 1))

    def layer_parts(self, hidden_size: int, tp: int) -> tuple[int, int]:
        """Weights of one sparse layer, in two parts.

        The router with a rank's part of what every token passes through; all routed experts."""
        router = self.num_experts * (hidden_size + self.bias)
        shared = 3 * hidden_size * self.shared_ffn_size // tp
        return router + shared, 3 * hidden_size * self.num_experts * self.ffn_hidden_size

    def active_weights(self, hidden_size: int) -> int:
        """Weights of one sparse layer that a token is multiplied with."""
        width = self.top_k * self.ffn_hidden_size + self.shared_ffn_size
        return self.num_experts * hidden_size + 3 * hidden_size * width


def qwen3_moe(fields: Fields, num_layers: int) -> MoeShape:
    """Qwen3-MoE: softmax over all experts, no shared one."""
    # transformers saves the number under the second name since 5.0
    key = "num_experts" if "num_experts" in fields.raw else "num_local_experts"
    step, dense = fields.count("decoder_sparse_step"), _layer_list(fields, "mlp_only_layers")
    sparse = tuple((i + 1) % step == 0 and i not in dense for i in range(num_layers))
    return _checked(
        MoeShape(
            sparse,
            fields.count(key, 128),
            fields.count("num_experts_per_tok"),
            fields.count("moe_intermediate_size"),
            normalized=fields.flag("norm_topk_prob"),
        )
    )


def glm4_moe(fields: Fields, num_layers: int) -> MoeShape:
    """GLM-4.5, and the form of DeepSeek-V3's router that megatron-core computes.

    Sigmoid scores, a bias that only chooses, experts that every token passes through."""
    first = fields.get("first_k_dense_replace")
    if type(first) is not int or first < 0:
        raise ModelError(
            f"config.json: first_k_dense_replace should be a whole number from 0, found {first!r}"
        )
    top_k, groups = fields.count("num_experts_per_tok"), fields.count("n_group")
    top_groups, width = fields.count("topk_group"), fields.count("moe_intermediate_size")
    # a group's score is the sum of its best two; megatron-core sums its best K / top_groups
    if groups > 1 and top_k != 2 * top_groups:
        raise ModelError(
            f"config.json: n_group {groups} with topk_group {top_groups} and num_experts_per_tok"
            f" {top_k} is not supported (megatron-core scores a group by its best"
            f" {top_k / top_groups:g} experts, the model by two)"
        )
    return _checked(
        MoeShape(
            tuple(layer >= first for layer in range(num_layers)),
            fields.count("n_routed_experts"),
            top_k,
            width,
            score="sigmoid",
            normalized=fields.flag("norm_topk_prob"),
            scale=fields.number("routed_scaling_factor"),
            bias=True,
            groups=groups,
            top_groups=top_groups,
            shared_ffn_size=width * fields.count("n_shared_experts"),
        )
    )


def _layer_list(fields: Fields, key: str) -> list[int]:
    value: Any = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise ModelError(f"config.json: {key} should be a list of layer indices, found {value!r}")
    return value


def _checked(moe: MoeShape) -> MoeShape:
    if not moe.num_sparse:
        raise ModelError(
            "config.json: no layer has experts (decoder_sparse_step, mlp_only_layers); fix: the"
            " dense model_type of the family"
        )
    if moe.top_k > moe.num_experts:
        raise ModelError(
            f"config.json: num_experts_per_tok {moe.top_k} is more than the {moe.num_experts}"
            " experts"
        )
    if moe.top_k == 1 and moe.normalized:
        raise ModelError(
            "config.json: num_experts_per_tok 1 with norm_topk_prob gives every expert the weight"
            " 1, from which the router learns nothing; not supported; fix: a model with two or more"
        )
    return moe
