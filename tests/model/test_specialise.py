"""The specialised modules for two frames and one token equal diffusers' modules."""

import copy

import pytest
import torch
from conftest import losses_of, make_batch, make_editor
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fp_lightning.model.svd.specialise import TwoFrameConv, UpsampleConv, generalise, idle_weights, specialise
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.tiny import tiny_unet, tiny_vae


def inputs(videos: int = 2, frames: int = 2, tokens: int = 1, size: int = 16):
    g = torch.Generator().manual_seed(0)
    sample = torch.randn(videos, frames, 32, size, size, generator=g)
    token = torch.randn(videos, tokens, 32, generator=g)
    return sample, torch.rand(videos, generator=g), token, torch.rand(videos, 3, generator=g)


def networks():
    """Make a network with diffusers' modules and the same one specialised; no weight is zero."""
    torch.manual_seed(0)
    general = tiny_unet().eval()
    for parameter in general.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return general, specialise(copy.deepcopy(general))


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("videos", [1, 2])
def test_unet_output_is_the_same(videos):
    general, special = networks()
    args = inputs(videos, size=32)
    with torch.no_grad():
        assert relative(special(*args, return_dict=False)[0], general(*args, return_dict=False)[0]) < 1e-5


def test_double_precision_agrees_to_double_precision():
    """The difference is rounding: it shrinks with the precision."""
    general, special = (network.double() for network in networks())
    args = [x.double() for x in inputs(size=32)]
    with torch.no_grad():
        assert relative(special(*args, return_dict=False)[0], general(*args, return_dict=False)[0]) < 1e-13


def test_gradients_are_the_same():
    general, special = (network.double().train() for network in networks())
    args = [x.double() for x in inputs(size=32)]
    for network in (general, special):
        network(*args, return_dict=False)[0].square().mean().backward()
    idle = idle_weights(special)
    for (name, a), b in zip(general.named_parameters(), special.parameters(), strict=True):
        if name in idle:
            assert b.grad is None and a.grad.abs().max() < 1e-12, name
        else:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_half_precision_is_as_near_to_the_truth_as_before():
    general, special = networks()
    args = inputs(size=32)
    with torch.no_grad():
        truth = general(*args, return_dict=False)[0]
        half = [x.bfloat16() for x in args]
        before, after = (
            (n.bfloat16()(*half, return_dict=False)[0].float() - truth).square().mean() for n in (general, special)
        )
    assert after < 1.3 * before


def test_temporal_decoder_output_is_the_same():
    torch.manual_seed(0)
    vae, latents = tiny_vae().eval(), torch.randn(4, 16, 16, 16)
    with torch.no_grad():
        before = vae.decode(latents, num_frames=2).sample
        specialise(vae.decoder)
        assert relative(vae.decode(latents, num_frames=2).sample, before) < 1e-5


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (3, 1), (2, 4)])
def test_other_numbers_of_frames_and_tokens_fall_back(frames, tokens):
    general, special = networks()
    args = inputs(frames=frames, tokens=tokens)
    with torch.no_grad():
        assert relative(special(*args, return_dict=False)[0], general(*args, return_dict=False)[0]) < 1e-5


def test_it_is_undone_to_the_last_bit_and_no_weight_changes_its_name():
    general, special = networks()
    assert list(special.state_dict()) == list(general.state_dict())
    assert [type(m) for m in special.modules()] != [type(m) for m in general.modules()]
    generalise(special)
    assert [type(m) for m in special.modules()] == [type(m) for m in general.modules()]
    with torch.no_grad():
        assert torch.equal(special(*inputs(), return_dict=False)[0], general(*inputs(), return_dict=False)[0])


def test_idle_weights_do_not_matter():
    _, special = networks()
    with torch.no_grad():
        before = special(*inputs(), return_dict=False)[0]
        for weight in idle_weights(special).values():
            weight.fill_(float("nan"))
        assert torch.equal(special(*inputs(), return_dict=False)[0], before)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        _, special = networks()
        if checkpointing:
            special.enable_gradient_checkpointing()
        special.train()(*inputs(), return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad for p in special.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_an_adapter_on_a_layer_still_acts():
    """LoRA wraps linear layers, so specialised modules must call layers and not read their weights."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) * 2

    general, special = networks()
    for network in (general, special):
        for name, module in list(network.named_modules()):
            if name.endswith((".attn2.to_v", ".attn1.to_k", ".attn1.to_out.0", ".conv1", ".upsamplers.0.conv")):
                network.set_submodule(name, Adapter(module))
    with torch.no_grad():
        after, truth = (network(*inputs(size=64), return_dict=False)[0] for network in (special, general))
    assert relative(after, truth) < 1e-5


def test_a_compiled_network_gives_the_same():
    _, special = networks()
    compiled = torch.compile(special, backend="aot_eager")
    with torch.no_grad():
        assert relative(compiled(*inputs(), return_dict=False)[0], special(*inputs(), return_dict=False)[0]) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(30, 21), (3, 2)])  # with four convolutions, and too few pixels for them
def test_upsampling_in_one_step_equals_two(height, width):
    torch.manual_seed(0)
    layer, x = Upsample2D(6, use_conv=True, out_channels=4).double(), torch.randn(1, 6, height, width).double()
    with torch.no_grad():
        before = layer(x)
        layer.__class__ = UpsampleConv
        torch.testing.assert_close(layer(x), before)


def test_temporal_convolution_takes_half_the_products():
    conv, x = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, 8, 2, 7, 9)
    counts, outputs = [], []
    for kind in (nn.Conv3d, TwoFrameConv):
        conv.__class__ = kind
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs.append(conv(x))
        counts.append(counter.get_total_flops())
    torch.testing.assert_close(*outputs)
    assert counts[0] == 2 * counts[1]


@pytest.mark.parametrize("size", [(7, 9), (3, 2)])  # with three products without gradients, and too few pixels for them
def test_gradients_of_a_temporal_convolution_in_bfloat16(size):
    """Also on few pixels, where torch 2.15 computes an infinite gradient of the weight on CPUs."""
    torch.manual_seed(0)
    conv, x = nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0)), torch.randn(2, 16, 2, *size)
    conv.__class__ = TwoFrameConv
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            y = conv(x)
        gradients.append(torch.autograd.grad(y.float().square().sum(), list(conv.parameters())))
    for exact, lowered in zip(*gradients, strict=True):
        assert relative(lowered, exact) < 0.05
    trained = conv(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(conv(x), trained)


def test_the_editors_network_has_the_shortcuts_and_every_trainable_weight_a_gradient():
    """Also after saving and loading; DDP would wait for a missing gradient."""
    editor = make_editor().train()
    assert type(editor.prior.vae.decoder.up_blocks[0].upsamplers[0]) is UpsampleConv
    losses_of(editor, make_batch(2, size=32)).total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in editor.prior.unet.parameters())


def test_a_loaded_network_has_the_same_frozen_weights(tmp_path):
    unet = make_editor().prior.unet
    unet.save_pretrained(tmp_path)
    loaded = FramePainterUNet.from_pretrained(tmp_path)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == set(idle_weights(loaded)) and frozen
