"""Tasks of `fp-lightning bench gpu`: the U-Net and a guided edit, beside diffusers' SVD on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from fp_lightning.bench.gpu_rows import Task
from fp_lightning.bench.measure import flops
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.matching import FRAMES
from fp_lightning.model.svd.prior import svd_prior
from fp_lightning.model.svd.specialise import generalise, specialise
from fp_lightning.model.svd.unet import FramePainterUNet

WAYS = ("plain modules", "eager", "channels-last", "compiled blocks", "compiled, CUDA graphs")  # of the U-Net


@dataclass
class Editing:
    """An editor that is measured in one type and several ways.

    Args:
        build: makes the editor; called once, when it is first needed.
        size: (height, width) in pixels.
        steps: of an edit.
        device: "cpu" or "cuda".
        compiler: options of `torch.compile` that replace those for a GPU.
    """

    build: Callable[[], FramePainter]
    size: tuple[int, int]
    steps: int
    device: str
    compiler: dict[str, Any] | None = None
    _editor: FramePainter | None = field(default=None, repr=False)

    def editor(self, dtype: torch.dtype) -> FramePainter:
        """Return the editor in a type."""
        if self._editor is None:
            self._editor = self.build()
        if svd_prior(self._editor.prior).unet.dtype != dtype:
            self._editor.to(dtype)
        return self._editor.to(self.device).eval()

    def release(self) -> None:
        """Forget the editor, so that its memory is free."""
        self._editor = None

    def tasks(self, dtype: torch.dtype) -> list[Task]:
        """Return the tasks in a type: the U-Net, then the whole edit."""
        kind, compiling = str(dtype)[6:], 10.0 if self.compiler else 90.0
        tasks = [
            Task(
                f"U-Net, {kind}",
                "diffusers, without matching attention",
                lambda: self._plain_call(dtype),
                reference=True,
            )
        ]
        for part, make in ((f"U-Net, {kind}", self._call), (f"edit, {kind}", self._edit)):
            if part.startswith("edit"):
                name = "diffusers' SVD pipeline, without control and matching attention"
                tasks.append(Task(part, name, lambda: self._plain_edit(dtype), reference=True))
            for way in WAYS:
                needs = compiling if "compiled" in way else 10.0 if self.compiler else 30.0
                count = None if part.startswith("edit") or "compiled" in way else self._operations(dtype, way)
                tasks.append(Task(part, way, partial(make, dtype, way), needs, operations=count))
        return tasks

    def prepared(self, dtype: torch.dtype, way: str) -> FramePainter:
        """Return the editor set up in one of `WAYS`, and in no other."""
        editor = self.editor(dtype)
        unet, vae = svd_prior(editor.prior).unet, svd_prior(editor.prior).vae
        for network in (unet, vae.decoder):
            (generalise if way == "plain modules" else specialise)(network)
        form = torch.channels_last if way == "channels-last" else torch.contiguous_format
        for module in unet.modules():
            module._compiled_call_impl = None  # undoes `compile`
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=form)  # type: ignore[call-overload]
        if way == "compiled blocks":
            unet.compile_repeated_blocks(**(self.compiler or {}))
        if way == "compiled, CUDA graphs":
            unet.compile(**(self.compiler or {"mode": "reduce-overhead"}))
        return editor

    def _inputs(self, editor: FramePainter, dtype: torch.dtype) -> list[Tensor]:
        """Random inputs of a guided call: two samples of two frames."""
        unet, stride = svd_prior(editor.prior).unet, editor.prior.stride
        height, width = (side // stride for side in self.size)
        shapes = (
            (2, FRAMES, unet.config.in_channels, height, width),
            (2,),
            (2, 1, unet.config.cross_attention_dim),
            (2, 3),
        )
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator).to(self.device, dtype) for shape in shapes]

    def _call(self, dtype: torch.dtype, way: str) -> tuple[Callable[[], Tensor], int]:
        editor = self.prepared(dtype, way)
        network, inputs = svd_prior(editor.prior).unet, self._inputs(editor, dtype)
        return torch.no_grad()(lambda: network(*inputs)[0]), held(network)

    def _operations(self, dtype: torch.dtype, way: str) -> Callable[[], int]:
        return lambda: flops(self._call(dtype, way)[0])

    def _plain_call(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
        editor = self.prepared(dtype, "plain modules")
        network = plain_network(svd_prior(editor.prior).unet)
        sample, level, embedding, ids = self._inputs(editor, dtype)
        run = torch.no_grad()(lambda: network(sample, level, embedding, ids, return_dict=False)[0])
        return run, held(network)

    def _edit(self, dtype: torch.dtype, way: str) -> tuple[Callable[[], Tensor], int]:
        pipe = FramePainterPipeline.from_editor(self.prepared(dtype, way), self.size)
        pipe.set_progress_bar_config(disable=True)
        photo, sketch = Image.new("RGB", self.size[::-1], (90, 130, 80)), Image.new("RGB", self.size[::-1])
        sketch.paste((255, 255, 255), (8, 8, self.size[1] // 2, 10))

        last: dict[str, Tensor] = {}

        def keep(pipe: Any, step: int, level: Tensor, tensors: dict[str, Tensor]) -> None:
            last.update(tensors)

        def edit() -> Tensor:
            """Edit to an image, and return the latents, which are not rounded."""
            generator = torch.Generator().manual_seed(0)
            options: dict[str, Any] = {"num_inference_steps": self.steps, "generator": generator}
            pipe(photo, sketch, **options, output_type="pt", callback_on_step_end=keep)
            return last["latents"]

        return edit, held(*pipe.components.values())

    def _plain_edit(self, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
        editor = self.prepared(dtype, "plain modules")
        prior = svd_prior(editor.prior)
        side = prior.image_encoder.config.image_size
        pipe = StableVideoDiffusionPipeline(
            prior.vae,
            prior.image_encoder,
            plain_network(prior.unet),
            EulerDiscreteScheduler(
                prediction_type="v_prediction",
                timestep_type="continuous",
                timestep_spacing="leading",
                use_karras_sigmas=True,
                sigma_min=prior.sigma_range[0],
                sigma_max=prior.sigma_range[1],
            ),
            CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        )
        pipe.set_progress_bar_config(disable=True)
        photo = Image.new("RGB", self.size[::-1], (90, 130, 80))
        options = {"height": self.size[0], "width": self.size[1], "num_frames": FRAMES, "output_type": "pt"}
        run = lambda: pipe(photo, num_inference_steps=self.steps, **options).frames  # noqa: E731
        return run, held(*pipe.components.values())


def held(*parts: Any) -> int:
    """Return the bytes of the weights and buffers of those parts that are networks."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    return sum(x.nbytes for network in networks for x in (*network.parameters(), *network.buffers()))


def plain_network(unet: FramePainterUNet) -> UNetSpatioTemporalConditionModel:
    """Return diffusers' U-Net on the tensors of `unet`, without the matching branch and without copying."""
    config = {k: v for k, v in unet.config.items() if k not in ("attention", "match_queries") and not k.startswith("_")}
    with torch.device("meta"):
        plain = UNetSpatioTemporalConditionModel.from_config(config)
    weights = unet.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    return plain.eval()
