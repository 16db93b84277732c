"""The matching loss equals its dense definition, in value and gradient, on the CPU and in the Triton kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import losses_of, make_batch, make_editor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fp_lightning.errors import InputError
from fp_lightning.model import matching_loss as module
from fp_lightning.model.matching_loss import FORMS, matching_loss


def dense_loss(query, key, index, form):
    """Eq. 5 to 7 as written: full A, C and M."""
    attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    rows = (index >= 0).to(query.dtype)
    target = torch.zeros(index.shape[0], index.shape[1], key.shape[2], dtype=query.dtype)
    target.scatter_(2, index.clamp(min=0)[..., None], 1)
    if form == "squared":
        every = (attention - target[:, None]).square().sum(-1)
    else:
        every = -(attention * target[:, None]).sum(-1).log()
    return (every.where(rows[:, None] > 0, 0).sum((1, 2)) / (rows.sum(1) * query.shape[1])).mean()


@pytest.fixture
def qki():
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 20, 8, generator=g, requires_grad=True) for _ in range(2))
    index = torch.randint(-1, 20, (2, 20), generator=g)
    index[1, ::2] = -1
    return query, key, index


@pytest.mark.parametrize("at_once", [1, 20 * 3 * 7, 2**22])  # one row, seven, all
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients_equal_the_dense_ones(qki, form, at_once, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    query, key, index = qki
    ours, dense = matching_loss(query, key, index, form), dense_loss(query, key, index, form)
    torch.testing.assert_close(ours, dense)
    for a, b in zip(*(torch.autograd.grad(3 * x, (query, key)) for x in (ours, dense)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_numeric_gradients_agree(qki, form):
    """The loss computes in float32, so the steps are coarse."""
    query, key, index = qki
    direction, step = torch.randn_like(query), 1e-2
    loss = matching_loss(query, key, index, form)
    slope = (torch.autograd.grad(loss, query)[0] * direction).sum()
    with torch.no_grad():
        ahead, behind = (matching_loss(query + s * direction, key, index, form) for s in (step, -step))
    assert slope.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_loss_without_visible_rows_is_zero_and_so_are_its_gradients(qki, form):
    query, key, index = qki
    loss = matching_loss(query, key, torch.full_like(index, -1), form)
    assert loss.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(loss, (query, key)))


@pytest.mark.parametrize("form", FORMS)
def test_loss_of_perfect_attention_vanishes(form):
    key = torch.eye(6)[None, None] * 200
    index = torch.tensor([[3, 1, 0, 5, 2, 4]])
    assert matching_loss(key[:, :, index[0]], key, index, form).item() < 1e-6


def test_huge_logits_stay_finite(qki):
    query, key, index = qki
    for form in FORMS:
        loss = matching_loss(query * 1e4, key, index, form)
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, (query, key)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(qki, reentrant):
    query, key, index = qki
    plain = torch.autograd.grad(matching_loss(query, key, index), (query, key))
    again = checkpoint(matching_loss, query, key, index, use_reentrant=reentrant)
    again.backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, (query, key), strict=True))


def test_half_precision_in_gives_half_precision_gradients_and_a_float32_loss(qki):
    query, key, index = qki
    half = [x.detach().bfloat16().requires_grad_() for x in (query, key)]
    loss = matching_loss(*half, index)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(loss, half)] == [torch.bfloat16] * 2
    torch.testing.assert_close(loss, matching_loss(*(x.float() for x in half), index))


def test_only_visible_rows_cost(qki):
    query, key, index = qki
    with FlopCounterMode(display=False) as counter:
        matching_loss(query, key, index).backward()
    assert counter.get_total_flops() == 4 * 2 * int((index >= 0).sum()) * 3 * 20 * 8


class NoReading(TorchDispatchMode):
    """Raises on operations that make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        boolean = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not boolean and func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select")
        return func(*args, **kwargs or {})


def test_the_backward_pass_does_not_read_results():
    editor, batch = make_editor().train(), make_batch(2, size=32, points=3)
    loss = losses_of(editor, batch).total
    with NoReading():
        loss.backward()
        with pytest.raises(AssertionError):
            loss.item()


KERNELS = """
import itertools, torch
from fp_lightning.model import matching_triton as kernels
from fp_lightning.model.matching_loss import matching_rows, matching_rows_backward
g = torch.Generator().manual_seed(0)
for (n, m, d), squared, dtype in itertools.product(
    [(70, 70, 16), (64, 130, 32), (33, 40, 256)], [True, False], [torch.float32, torch.float16]
):
    query, key = (torch.randn(2, 3, x, d, generator=g).to(dtype) for x in (n, m))
    index = torch.randint(-m, m, (2, n), generator=g).clamp(min=-1)
    if d == 32:
        index[1] = -1
    plain, fast = matching_rows(query, key, index, squared), kernels.rows(query, key, index, squared)
    near = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=2e-2, atol=2e-2)
    for a, b in zip(fast[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, **near)
    if squared:
        torch.testing.assert_close(fast[2], plain[2], **near)
    gradient = torch.randn(plain[0].shape, generator=g)
    plain = matching_rows_backward(gradient, query, key, index, plain[1], plain[2], squared)
    fast = kernels.rows_backward(gradient, query, key, index, fast[1], fast[2], squared)
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == dtype and b.any()
        torch.testing.assert_close(a, b, **near)
    print("checked", n, m, d, squared, dtype)
"""


def test_the_kernels_compute_what_the_plain_version_does():
    """Run in Triton's interpreter, which is selected before Triton is imported and has no bfloat16 products."""
    pytest.importorskip("triton", reason="Triton is not installed with torch here")
    done = subprocess.run(
        [sys.executable, "-c", KERNELS],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checked") == 12


def test_the_editor_takes_either_form():
    batch = make_batch(1, size=32)
    squared, entropy = (losses_of(make_editor(matching_loss=form), batch) for form in FORMS)
    assert squared.diffusion == entropy.diffusion and squared.matching < 2 < entropy.matching


def test_an_unknown_form_is_named():
    with pytest.raises(InputError, match="matching_loss must be squared or cross_entropy, got 'l1'"):
        make_editor(matching_loss="l1")


def test_autocast_does_not_reach_inside(qki):
    query, key, index = qki
    plain = matching_loss(query, key, index)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matching_loss(query, key, index), plain)
        torch.autograd.grad(matching_loss(query.bfloat16(), key.bfloat16(), index), (query, key))
