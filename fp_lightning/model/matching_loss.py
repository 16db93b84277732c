"""The matching loss (Eq. 7) and its cross-entropy form, without storing the attention matrix A.

For logits S, A = softmax(S). A row of C is one-hot; let c be its source token. Then a row of the squared form equals
Σ_j A_j² − 2 A_c + 1, and its cross-entropy equals log Σ_j exp S_j − S_c. So a visible row needs its log-sum-exp,
the logit S_c and Σ_j A_j². Rows without a visible match are skipped. The forward pass stores the log-sum-exp, and the
backward pass recomputes A = exp(S − log-sum-exp) from it, as flash attention does. Memory is linear in the tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop, sdpa_flop

MatchingForm = Literal["squared", "cross_entropy"]
FORMS: tuple[MatchingForm, ...] = ("squared", "cross_entropy")
_AT_ONCE = 2**22  # logits in memory at a time without the Triton kernels: 16 MiB


def matching_loss(query: Tensor, key: Tensor, source_index: Tensor, form: MatchingForm = "squared") -> Tensor:
    """Return ‖M · (A − C)‖² (Eq. 7), or the cross-entropy of A against C, as a float32 scalar.

    The loss of a sample is the mean over its visible rows and the heads, or 0 if no row is visible. The loss of a
    batch is the mean over its samples, so that losses of equal parts of a batch average to the loss of the batch.
    The paper does not state these means. Computed in float32. First derivatives in `query` and `key` only.

    Args:
        query: [b, heads, n, d] of the target tokens.
        key: [b, heads, m, d] of the source tokens.
        source_index: long [b, n], the source token of each target token, or -1 without a visible match.
        form: "squared" (paper) or "cross_entropy".
    """
    rows = matching_rows(query, key, source_index, form == "squared")[0]
    return (rows.mean(1).sum(-1) / (source_index >= 0).sum(-1).clamp(min=1)).mean()


@torch.library.custom_op("fp_lightning::matching_rows", mutates_args=())
def matching_rows(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the log-sum-exp and Σ_j A_j ∂loss/∂A_j of each row.

    Args:
        query, key: see `matching_loss`.
        index: `source_index` of `matching_loss`.
        squared: the squared form; False for cross-entropy.

    Returns:
        Three tensors, float32 [b, heads, n], 0 where the index is -1.
    """
    if kernels := _kernels(query):
        return kernels.rows(query, key, index, squared)
    with torch.autocast(query.device.type, enabled=False):
        return _rows(query, key, index, squared)


def _rows(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss, normaliser, mean = (query.new_zeros(query.shape[:3], dtype=torch.float32) for _ in range(3))
    for q, k, target, *out in zip(query, key, index, loss, normaliser, mean, strict=True):
        k = k.float()
        for rows in _visible(target, k):
            logits, picked = _logits(q, k, target, rows)
            z = logits.logsumexp(-1)
            logit = logits.gather(-1, picked)[..., 0]
            if squared:
                share, squares = (logit - z).exp(), logits.sub_(z[..., None]).exp_().square_().sum(-1)
                values = squares - 2 * share + 1, z, 2 * (squares - share)
            else:
                values = z - logit, z, torch.ones_like(z)
            for field, value in zip(out, values, strict=True):
                field[:, rows] = value
    return loss, normaliser, mean


@torch.library.custom_op("fp_lightning::matching_rows_backward", mutates_args=())
def matching_rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, index: Tensor, normaliser: Tensor, mean: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `query` and `key`, in their types.

    Args:
        gradient: of the row losses, [b, heads, n].
        query, key, index, squared: see `matching_rows`.
        normaliser, mean: the second and third output of `matching_rows`.
    """
    if kernels := _kernels(query):
        return kernels.rows_backward(gradient, query, key, index, normaliser, mean, squared)
    with torch.autocast(query.device.type, enabled=False):
        return _rows_backward(gradient, query, key, index, normaliser, mean, squared)


def _rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, index: Tensor, normaliser: Tensor, mean: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    grad_query, grad_key = (torch.zeros_like(x, dtype=torch.float32) for x in (query, key))
    scale = query.shape[-1] ** -0.5
    for b, (q, k, target) in enumerate(zip(query, key, index, strict=True)):
        k = k.float()
        for rows in _visible(target, k):
            logits, picked = _logits(q, k, target, rows)
            share = logits.sub_(normaliser[b][:, rows, None]).exp_()
            if squared:  # A ⊙ (2A − 2C − Σ A(2A − 2C))
                slope = share.gather(-1, picked) * -2
                share.addcmul_(share, share.mul(2).sub_(mean[b][:, rows, None]).sub_(1))
            else:  # A − C
                slope = share.new_full((), -1.0).expand(picked.shape)
            share.scatter_add_(-1, picked, slope).mul_(gradient[b][:, rows, None] * scale)
            grad_query[b][:, rows] = share @ k
            grad_key[b].baddbmm_(share.mT, q[:, rows].float())
    return grad_query.to(query.dtype), grad_key.to(key.dtype)


def _logits(query: Tensor, key: Tensor, target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled logits [heads, r, m] of `rows` and the indices of their source tokens [heads, r, 1]."""
    logits = query[:, rows].float().mul_(query.shape[-1] ** -0.5) @ key.mT
    return logits, target[rows].expand(len(query), -1)[..., None]


def _visible(target: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of the visible rows, in chunks of about `_AT_ONCE` logits."""
    return (target >= 0).nonzero()[:, 0].split(max(1, _AT_ONCE // (key.shape[0] * key.shape[1])))


def _kernels(query: Tensor):
    """Return the Triton kernels, or None where they cannot run: no GPU, no Triton, or a head width that does not fit.

    The kernels need no synchronisation with the host; the fallback does.
    """
    width = query.shape[-1]
    if query.device.type != "cuda" or width < 16 or width & (width - 1) or width > 256:
        return None
    try:
        from fp_lightning.model import matching_triton
    except ImportError:
        return None
    return matching_triton


@matching_rows.register_fake
def _(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss, normaliser, mean = (query.new_empty(query.shape[:3], dtype=torch.float32) for _ in range(3))
    return loss, normaliser, mean


@matching_rows_backward.register_fake
def _(gradient, query, key, index, normaliser, mean, squared) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.squared = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, gradient: Tensor, *_):
    return *matching_rows_backward(gradient, *ctx.saved_tensors, ctx.squared), None, None


matching_rows.register_autograd(_backward, setup_context=_setup_context)


def _products(query: Tensor, index: Tensor, tokens: int) -> int:
    """Return the FLOPs of one product of the visible rows with all tokens. Count all rows if `index` has no values."""
    known = not isinstance(index, torch._subclasses.FakeTensor) and index.device.type != "meta"
    rows = int((index >= 0).sum()) if known else index.numel()
    return 2 * rows * query.shape[1] * tokens * query.shape[3]


@register_flop_formula(torch.ops.fp_lightning.matching_rows, get_raw=True)
def _(query, key, index, squared, *args, out_val=None, **kwargs) -> int:
    return _products(query, index, key.shape[2])


@register_flop_formula(torch.ops.fp_lightning.matching_rows_backward, get_raw=True)
def _(gradient, query, key, index, *args, out_val=None, **kwargs) -> int:
    return 3 * _products(query, index, key.shape[2])


# torch before 2.15 does not count the FLOPs of its attention on the CPU
for _attention, _formula in (
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, sdpa_flop),
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, sdpa_backward_flop),
):
    if _attention not in flop_registry:
        register_flop_formula(_attention, get_raw=True)(_formula)
