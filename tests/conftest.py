"""Shared by tests: small editors, batches of scenes with exact correspondence, folders of models."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from lightning.pytorch.callbacks import ModelCheckpoint

from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.editor import FramePainter, Losses
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.svd.load import Backbone
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.tiny import (
    tiny_control_encoder,
    tiny_image_encoder,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
    write_tiny,
)
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import EditBatch, VideoPair, to_unit_range

torch.set_num_threads(1)
LONGEST = ("cli", "training", "test_notebooks.py", "test_docs.py", "demo", "pairs")  # to run


def pytest_collection_modifyitems(config, items) -> None:
    """Skip what needs a GPU, unless `-m gpu` asks for it.

    Begin with what takes longest, so that parallel processes end at about the same time.
    """
    if config.option.markexpr != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))
    elif not torch.cuda.is_available() and not config.option.collectonly:
        pytest.exit("these tests need a GPU, and torch finds none; `fp-lightning doctor` says why", returncode=1)

    def place(item) -> int:
        name = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def tracked_points(pair: VideoPair, count: int, seed: int) -> torch.Tensor:
    """Choose `count` visible tokens; return exact positions [1, count, 4] as (x_src, y_src, x_tgt, y_tgt) in px."""
    rows, columns = pair.visible.nonzero(as_tuple=True)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    source = pair.tracks[:, rows[chosen], columns[chosen]]
    stride = pair.size[1] / pair.visible.shape[1]
    target = (torch.stack([columns[chosen], rows[chosen]]) + 0.5) * stride
    return torch.cat([source, target]).T[None]


def make_batch(count: int = 2, size: int = 64, first_seed: int = 0, points: int | None = None) -> EditBatch:
    """Make a batch of `count` procedural scenes with sketches, exact tracks, and `points` drag points each."""
    samples = []
    for seed in range(first_seed, first_seed + count):
        pair = Scene(seed, (size, size)).pair(stride=4)
        samples.append(
            EditBatch(
                source=to_unit_range(pair.source)[None],
                target=to_unit_range(pair.target)[None],
                control=sketch(pair)[None],
                points=None if points is None else tracked_points(pair, points, seed),
                points_valid=None if points is None else torch.ones(1, points, dtype=torch.bool),
                tracks=pair.tracks[None],
                visible=pair.visible[None],
                moving=pair.moving()[None],
                name=[f"scene-{seed}"],
            )
        )
    return EditBatch.cat(samples)


def losses_of(editor: FramePainter, batch: EditBatch, seed: int = 0) -> Losses:
    """Return the losses with noise that depends on `seed` and the samples' names."""
    return editor.losses(batch, seeded_generators(batch.name, seed))


def small_unet() -> UNetSpatioTemporalConditionModel:
    """The tiny build's U-Net with half of its width, the least that normalisation in 32 groups allows."""
    return UNetSpatioTemporalConditionModel.from_config({**tiny_unet().config, "block_out_channels": (32, 32)})


def small_vae() -> AutoencoderKLTemporalDecoder:
    """The tiny build's VAE with a third of its width."""
    vae = AutoencoderKLTemporalDecoder.from_config({**tiny_vae().config, "block_out_channels": (32, 32, 32)})
    with torch.no_grad():
        vae.quant_conv.bias[16:] = -6
    return vae


def make_editor(
    attention: str = "matching",
    match_queries: str = "target",
    noisy: bool = True,
    tiny: bool = False,
    **options,
) -> FramePainter:
    """Make an editor with random weights, the same at every call.

    Args:
        attention, match_queries: see `FramePainterUNet`.
        noisy: fill the output layers of the matching branch, which start at zero, with random values.
        tiny: the architecture of the tiny build; otherwise a smaller one.
        options: see `FramePainter`.
    """
    backbone, random_state = _random_backbone(attention, match_queries, noisy, tiny)
    torch.set_rng_state(random_state)
    backbone = copy.deepcopy(backbone)
    return FramePainter(backbone.prior(), backbone.control_encoder, **options).eval()


@functools.cache
def _random_backbone(attention: str, match_queries: str, noisy: bool, tiny: bool) -> tuple[Backbone, torch.Tensor]:
    """A backbone, and the state of torch's random numbers after it was made."""
    torch.manual_seed(0)
    unet = FramePainterUNet.from_svd(tiny_unet() if tiny else small_unet(), attention, match_queries)
    if noisy:
        for name, parameter in unet.named_parameters():
            if ".processor.to_out" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    control_encoder = tiny_control_encoder() if tiny else ControlEncoder(widths=(8, 16, 32), out_channels=32)
    vae = tiny_vae() if tiny else small_vae()
    backbone = Backbone(unet, control_encoder, vae, tiny_image_encoder(), tiny_scheduler())
    return backbone, torch.get_rng_state()


def saving_trainer(folder: Path, steps: int, *callbacks: L.Callback) -> L.Trainer:
    """Return a quiet trainer without validation that saves `step=N.ckpt` after every step."""
    return L.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
    )


@pytest.fixture
def batch() -> EditBatch:
    return make_batch()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder in SVD's format with random weights of the tiny build."""
    torch.manual_seed(0)
    return write_tiny(tmp_path_factory.mktemp("model") / "svd", tiny_vae())


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory):
    """A segmenter in SAM's format with random weights, small enough for a test."""
    import transformers as t

    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
    vision = t.SamVisionConfig(
        **width,
        output_channels=16,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[0],
        num_pos_feats=8,
    )
    prompts = t.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    masks = t.SamMaskDecoderConfig(**width, iou_head_hidden_dim=16)
    sides = {"size": 64, "mask_size": 16}
    images = t.SamImageProcessor(
        **{name: {"longest_edge": side} for name, side in sides.items()},
        pad_size={"height": 64, "width": 64},
        mask_pad_size={"height": 16, "width": 16},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    config = t.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    t.SamModel(config).save_pretrained(folder)
    t.SamProcessor(images).save_pretrained(folder)
    return folder
