"""The matching loss (Eq. 7) and its cross-entropy form, without the matrix of all tokens by all tokens.

A one-hot row c of C leaves Σ_j A_j² − 2 A_c + 1 of the squared form, and cross-entropy is log Σ_j exp S_j − S_c. So a
visible row needs its log-sum-exp, its picked logit and Σ A²; rows without a visible match need nothing. The backward
pass makes A = exp(S − log-sum-exp) again from what was kept, a vector a head: memory is that of query and key.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop, sdpa_flop

MatchingForm = Literal["squared", "cross_entropy"]
FORMS: tuple[MatchingForm, ...] = ("squared", "cross_entropy")
_AT_ONCE = 2**22  # logits that the plain version holds at a time: 16 MiB


def matching_loss(query: Tensor, key: Tensor, source_index: Tensor, form: MatchingForm = "squared") -> Tensor:
    """‖M · (A − C)‖² (Eq. 7), or the cross-entropy of A against C.

    A sample's is the mean over its visible rows and the heads, 0 where no row is visible; of a batch, the mean of its
    samples', so that shares of a batch average to the whole. Differentiable once, in query and key; float32 inside,
    whatever their type.

    Args:
        query: [b, heads, n, d] of the target tokens; key: [b, heads, m, d] of the source tokens.
        source_index: long [b, n], the source token of each target token, or -1.
        form: "squared" (paper) or "cross_entropy".
    """
    rows = matching_rows(query, key, source_index, form == "squared")[0]
    return (rows.mean(1).sum(-1) / (source_index >= 0).sum(-1).clamp(min=1)).mean()


@torch.library.custom_op("fp_lightning::matching_rows", mutates_args=())
def matching_rows(query: Tensor, key: Tensor, index: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's loss, log-sum-exp and Σ_j A_j ∂loss/∂A_j, float32 [b, heads, n]; 0 where the index is -1."""
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
    """The gradients of query and key, of their types, from that of the rows' losses."""
    if kernels := _kernels(query):
        return kernels.rows_backward(gradient, query, key, index, normaliser, mean, squared)
    with torch.autocast(query.device.type, enabled=False):
        return _rows_backward(gradient, query, key, index, normaliser, mean, squared)


def _rows_backward(
    gradient: Tensor, query: Tensor, key: Tensor, index: Tensor, normaliser: Tensor, mean: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    of_query, of_key = (torch.zeros_like(x, dtype=torch.float32) for x in (query, key))
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
            of_query[b][:, rows] = share @ k
            of_key[b].baddbmm_(share.mT, q[:, rows].float())
    return of_query.to(query.dtype), of_key.to(key.dtype)


def _logits(query: Tensor, key: Tensor, target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled logits [heads, r, m] of some rows, and the places of their source tokens [heads, r, 1]."""
    logits = query[:, rows].float().mul_(query.shape[-1] ** -0.5) @ key.mT
    return logits, target[rows].expand(len(query), -1)[..., None]


def _visible(target: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """The visible rows, some at a time."""
    return (target >= 0).nonzero()[:, 0].split(max(1, _AT_ONCE // (key.shape[0] * key.shape[1])))


def _kernels(query: Tensor):
    """The Triton kernels where they can run; they read no value of the device on the host, the plain version does."""
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


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.squared = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, gradient: Tensor, *_):
    return *matching_rows_backward(gradient, *ctx.saved_tensors, ctx.squared), None, None


matching_rows.register_autograd(_backward, setup_context=_keep)


def _products(query: Tensor, index: Tensor, tokens: int) -> int:
    """Operations of one product of the visible rows by all tokens; of all rows where the index is not known."""
    known = not isinstance(index, torch._subclasses.FakeTensor) and index.device.type != "meta"
    rows = int((index >= 0).sum()) if known else index.numel()
    return 2 * rows * query.shape[1] * tokens * query.shape[3]


@register_flop_formula(torch.ops.fp_lightning.matching_rows, get_raw=True)
def _(query, key, index, squared, *args, out_val=None, **kwargs) -> int:
    return _products(query, index, key.shape[2])


@register_flop_formula(torch.ops.fp_lightning.matching_rows_backward, get_raw=True)
def _(gradient, query, key, index, *args, out_val=None, **kwargs) -> int:
    return 3 * _products(query, index, key.shape[2])


# the CPU's attention, which torch counts by itself from 2.15 on
for _attention, _formula in (
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, sdpa_flop),
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, sdpa_backward_flop),
):
    if _attention not in flop_registry:
        register_flop_formula(_attention, get_raw=True)(_formula)
