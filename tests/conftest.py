"""What several tests share: a tiny editor, a batch of exact scenes."""

from __future__ import annotations

import pytest
import torch

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


def tracked_points(pair: VideoPair, count: int, seed: int) -> torch.Tensor:
    """`count` visible tokens with their exact source positions, [1, count, 4]."""
    rows, columns = pair.visible.nonzero(as_tuple=True)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    source = pair.tracks[:, rows[chosen], columns[chosen]]
    stride = pair.size[1] / pair.visible.shape[1]
    target = (torch.stack([columns[chosen], rows[chosen]]) + 0.5) * stride
    return torch.cat([source, target]).T[None]


def make_batch(count: int = 2, size: int = 64, first_seed: int = 0, points: int | None = None) -> EditBatch:
    """`count` procedural scenes with exact tracks and their sketches, and `points` drag points each."""
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
    """With the samples' own noise."""
    return editor.losses(batch, seeded_generators(batch.name, seed))


def make_editor(
    attention: str = "matching", match_queries: str = "target", noisy: bool = True, **options
) -> FramePainter:
    """A tiny editor with random weights; `noisy` also gives the zeroed layers values, so that they matter."""
    torch.manual_seed(0)
    unet = FramePainterUNet.from_svd(tiny_unet(), attention, match_queries)
    if noisy:
        for name, parameter in unet.named_parameters():
            if ".processor.to_out" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    backbone = Backbone(unet, tiny_control_encoder(), tiny_vae(), tiny_image_encoder(), tiny_scheduler())
    return FramePainter(backbone.prior(), backbone.control_encoder, **options).eval()


@pytest.fixture
def batch() -> EditBatch:
    return make_batch()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder in SVD's format with random tiny weights, the U-Net's too."""
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
