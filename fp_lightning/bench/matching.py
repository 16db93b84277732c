"""Benchmark the matching loss against its dense definition and against the attention alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE
from fp_lightning.model.matching_loss import FORMS, matching_loss

TOKENS, HEADS, WIDTH, VISIBLE = 9216, 5, 64, 0.25  # finest layer at 576 × 1024


def matching(rounds: int) -> list[Result]:
    """Time attention with each form of the loss, forward and backward, against attention alone and the dense loss."""
    g = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    inputs = [torch.randn(1, HEADS, TOKENS, WIDTH, generator=g).to(DEVICE, dtype).requires_grad_() for _ in range(3)]
    query, key, value = inputs
    index = torch.randint(TOKENS, (1, TOKENS), generator=g)
    index = index.where(torch.rand(1, TOKENS, generator=g) < VISIBLE, -1).to(DEVICE)
    settings = {"tokens": TOKENS, "heads": HEADS, "width": WIDTH, "visible": VISIBLE, "type": str(dtype)[6:]}

    def attention() -> None:
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (query, key))

    results = []
    for form in FORMS:

        def sparse(form=form) -> None:
            attended = F.scaled_dot_product_attention(query, key, value)
            (attended.sum() + matching_loss(query, key, index, form)).backward()

        def dense(form=form) -> None:
            attended = F.scaled_dot_product_attention(query, key, value)
            (attended.sum() + dense_loss(query, key, index, form)).backward()

        alone = compare(f"matching/{form}/attention alone", sparse, attention, rounds, count=True, **settings)
        against = compare(f"matching/{form}/dense", sparse, dense, rounds, count=True, **settings)
        pairs = zip(
            gradients(matching_loss(query, key, index, form)),
            gradients(dense_loss(query, key, index, form)),
            strict=True,
        )
        against.error = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        against.settings["error"] = "relative, of the gradients"
        results += [alone, against]
    return results


def dense_loss(query: Tensor, key: Tensor, index: Tensor, form: str) -> Tensor:
    """Compute the loss from the full attention matrix A (Eq. 5 to 7).

    Args:
        query, key: [b, heads, n, d].
        index: source token of each target token [b, n], −1 where it is not visible.
        form: "squared" or "cross_entropy".

    Returns:
        A scalar, the mean over heads and visible target tokens.
    """
    attention = (query.float() @ key.float().mT * query.shape[-1] ** -0.5).softmax(-1)
    visible, picked = (index >= 0)[:, None], index.clamp(min=0)[:, None, :, None].expand(-1, query.shape[1], -1, 1)
    share = attention.gather(-1, picked)[..., 0]
    rows = attention.square().sum(-1) - 2 * share + 1 if form == "squared" else -share.log()
    return rows.where(visible, 0).sum() / (visible.sum() * query.shape[1])
