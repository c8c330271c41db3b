"""K4: statistics, policy loss and d logits of a row in one launch. Loss formulas:
`policy_terms.py`, whose Triton copy is `token_terms`.

Two modes. FUSED (this rank holds all columns): read the row, compute the loss, read it again (from
L2 where it still lies there) and write the gradient. Otherwise the merged statistics come in and
the row is read once.
"""

import math

import torch
import triton
import triton.language as tl

from megaladder.kernels import policy_terms
from megaladder.kernels.reference import PolicyRow, RowSpec, accumulator
from megaladder.kernels.triton_kernels import configs
from megaladder.kernels.triton_kernels.ce_backward import write_row_grad
from megaladder.kernels.triton_kernels.ce_stats import row_stats
from megaladder.kernels.triton_kernels.merge_stats import merge_stats

LOG2E = tl.constexpr(1.0 / math.log(2.0))
LN2 = tl.constexpr(math.log(2.0))
LIMIT = tl.constexpr(policy_terms.LOG_RATIO_LIMIT)
SFT = tl.constexpr(0)
REINFORCE = tl.constexpr(1)
PPO = tl.constexpr(2)
CISPO = tl.constexpr(3)


@triton.jit
def surrogate(
    logp, advantage, importance, old_logp, clip_low, clip_high, dual_clip, KIND: tl.constexpr
):
    """Unweighted loss of a token and its derivative by logp."""
    outer = advantage * importance
    difference = logp - old_logp
    ratio = tl.exp2(tl.minimum(tl.maximum(difference, -LIMIT), LIMIT) * LOG2E)
    clipped = tl.minimum(tl.maximum(ratio, 1.0 - clip_low), 1.0 + clip_high)
    if KIND == SFT:
        loss = -logp
        slope = logp * 0.0 - 1.0
    elif KIND == REINFORCE:
        loss = -outer * logp
        slope = -outer
    elif KIND == CISPO:
        loss = -outer * clipped * logp
        slope = -outer * clipped
    else:
        taken = (outer * ratio <= outer * clipped) & (tl.abs(difference) <= LIMIT)
        objective = tl.minimum(outer * ratio, outer * clipped)
        floor = dual_clip * outer
        cut = (dual_clip > 0.0) & (advantage < 0.0) & (floor > objective)
        loss = -tl.where(cut, floor, objective)
        slope = tl.where(cut, 0.0, tl.where(taken, -outer * ratio, 0.0))
    return loss, slope


@triton.jit
def token_terms(
    row, logp, entropy, weight_ptr, advantages_ptr, old_ptr, importance_ptr, ref_ptr,
    clip_low, clip_high, dual_clip, kl_coef, entropy_coef,
    KIND: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_ADVANTAGE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_IMPORTANCE: tl.constexpr,
    HAS_REF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Weighted loss, d/d logp, d/d entropy of one token."""
    one = logp * 0.0 + 1.0
    advantage = tl.load(advantages_ptr + row).to(ACC) if HAS_ADVANTAGE else one
    importance = tl.load(importance_ptr + row).to(ACC) if HAS_IMPORTANCE else one
    old_logp = tl.load(old_ptr + row).to(ACC) if HAS_OLD else logp
    loss, slope = surrogate(
        logp, advantage, importance, old_logp, clip_low, clip_high, dual_clip, KIND
    )
    if HAS_REF:
        gap = tl.load(ref_ptr + row).to(ACC) - logp
        limited = tl.minimum(tl.maximum(gap, -LIMIT), LIMIT)
        growth = tl.exp2(limited * LOG2E)
        loss += kl_coef * (growth - limited - 1.0)
        slope += tl.where(tl.abs(gap) <= LIMIT, kl_coef * (1.0 - growth), 0.0)
    loss -= entropy_coef * entropy
    weight = tl.load(weight_ptr + row).to(ACC) if HAS_WEIGHT else one
    return loss * weight, slope * weight, -entropy_coef * weight


@triton.jit
def ce_policy_kernel(
    logits_ptr, out_ptr, targets_ptr, inv_temperature_ptr, merged_ptr, result_ptr,
    weight_ptr, advantages_ptr, old_ptr, importance_ptr, ref_ptr,
    clip_low, clip_high, dual_clip, kl_coef, entropy_coef,
    num_tokens, row_stride, out_stride, vocab_start, n_valid, n_columns, ignore_index,
    FUSED: tl.constexpr, PER_TOKEN: tl.constexpr, HAS_ENTROPY: tl.constexpr, KIND: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_ADVANTAGE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_IMPORTANCE: tl.constexpr, HAS_REF: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    kept = target != ignore_index
    scale = tl.load(inv_temperature_ptr + row * PER_TOKEN).to(ACC)
    row_ptr = logits_ptr + row * row_stride
    local = target - vocab_start
    owned = kept & (local >= 0) & (local < n_valid)
    if FUSED:
        readable = tl.where(kept, n_valid, 0)
        top, total, spread = row_stats(
            row_ptr, scale * LOG2E, readable, LANES, VEC, HAS_ENTROPY, ACC, "evict_last"
        )
        at_target = tl.load(row_ptr + local, mask=owned, other=float("-inf")).to(ACC) * (
            scale * LOG2E
        )
        total = tl.where(kept, total, 1.0)
        log_total = tl.log2(total)
        logp = tl.where(kept, (at_target - top - log_total) * LN2, 0.0)
        entropy = (log_total - spread / total) * LN2
    else:
        logp = tl.load(merged_ptr + row)
        entropy = tl.load(merged_ptr + num_tokens + row)
        top = tl.load(merged_ptr + 3 * num_tokens + row)
        total = tl.load(merged_ptr + 4 * num_tokens + row)
    if not HAS_ENTROPY:
        entropy = logp * 0.0
    loss, d_logp, d_entropy = token_terms(
        row, logp, entropy, weight_ptr, advantages_ptr, old_ptr, importance_ptr, ref_ptr,
        clip_low, clip_high, dual_clip, kl_coef, entropy_coef,
        KIND, HAS_WEIGHT, HAS_ADVANTAGE, HAS_OLD, HAS_IMPORTANCE, HAS_REF, ACC,
    )  # fmt: skip
    d_logp = tl.where(kept, d_logp, 0.0)
    d_entropy = tl.where(kept, d_entropy, 0.0)
    tl.store(result_ptr + row, tl.where(kept, loss, 0.0))
    tl.store(result_ptr + num_tokens + row, d_logp)
    tl.store(result_ptr + 2 * num_tokens + row, d_entropy)
    tl.store(result_ptr + 3 * num_tokens + row, tl.where(kept, logp, 0.0))
    tl.store(result_ptr + 4 * num_tokens + row, tl.where(kept, entropy, 0.0))
    if FUSED:
        tl.debug_barrier()  # the target's logit is read before any thread overwrites its column
    write_row_grad(
        row_ptr, out_ptr + row * out_stride, scale * LOG2E, top, total, d_logp * scale, d_entropy * scale * LN2, entropy * LOG2E,
        tl.where(owned, local, -1), n_valid, n_columns, HAS_ENTROPY, LANES, VEC, ACC,
    )  # fmt: skip


def ce_policy(
    logits: torch.Tensor,
    spec: RowSpec,
    policy: PolicyRow,
    gathered: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """See `reference.ce_policy`."""
    configs.check_rows(logits, out)
    num_tokens, dtype = logits.shape[0], accumulator(logits.dtype)
    result = torch.zeros(5, num_tokens, dtype=dtype, device=logits.device)
    if num_tokens == 0:
        return result
    loss, inputs, config = policy.loss, policy.inputs, configs.row_config(configs.POLICY)
    if loss.kl_coef and inputs.ref_logp is None:
        raise ValueError(
            f"kl_coef={loss.kl_coef} needs ref_logp; fix: pass the reference log-probs or set kl_coef to 0"
        )
    merged = result if gathered is None else merge_stats(gathered, spec.targets, spec.ignore_index)
    tensors = (
        inputs.weight,
        inputs.advantages,
        inputs.old_logp,
        inputs.importance,
        inputs.ref_logp if loss.kl_coef else None,
    )
    with configs.device_guard(logits):
        ce_policy_kernel[(num_tokens,)](
            logits, out, spec.targets, spec.inv_temperature, merged, result,
            *(result if t is None else t.contiguous() for t in tensors),
            loss.clip_low, loss.clip_high, loss.dual_clip, loss.kl_coef, loss.entropy_coef,
            num_tokens, logits.stride(0), out.stride(0), spec.vocab_start, spec.n_valid, logits.shape[1], spec.ignore_index,
            FUSED=gathered is None, PER_TOKEN=int(spec.inv_temperature.numel() > 1), HAS_ENTROPY=loss.needs_entropy,
            KIND=policy_terms.KINDS.index(loss.kind),
            HAS_WEIGHT=tensors[0] is not None, HAS_ADVANTAGE=tensors[1] is not None, HAS_OLD=tensors[2] is not None,
            HAS_IMPORTANCE=tensors[3] is not None, HAS_REF=tensors[4] is not None,
            LANES=config.lanes, VEC=configs.vector(logits.dtype), ACC=configs.triton_dtype(dtype),
            num_warps=config.num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return result
