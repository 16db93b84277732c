"""The model card of a saved pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CARD = """---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- image-editing
- framepainter
- fp_lightning
---

# {title}

An interactive image editor: it edits a photo according to {drawn}. The model is a FramePainter
([paper](https://arxiv.org/abs/2501.08225)): Stable Video Diffusion with a control encoder and {attention} attention.
If the weights derive from Stable Video Diffusion, its licence applies to them.

```python
import torch
from PIL import Image
from fp_lightning import FramePainterPipeline

pipe = FramePainterPipeline.from_pretrained("{title}", dtype=torch.float16)
pipe.enable_model_cpu_offload()
edited = pipe(Image.open("photo.jpg"), {call}).images[0]  # at the size of the photo
```

| setting | value |
|---|---|
{rows}
"""
_CALLS = {
    "sketch": 'sketch=Image.open("photo.sketch.png")',
    "coarse": 'coarse=Image.open("photo.coarse.png")',
    "points": "points=[[120, 80, 180, 60]]",
}
_DRAWN = {"sketch": "a sketch", "coarse": "a coarse cut-and-paste", "points": "dragged points"}


def model_card(title: str, settings: Mapping[str, Any], signals: list[str] | None) -> str:
    """Return the model card as Markdown with the metadata that model hubs read.

    Args:
        title: hub id or folder name.
        settings: settings of the pipeline, shown as a table; must have "attention".
        signals: signals that the editor was trained on, or None if unknown.
    """
    listed = signals or list(_DRAWN)
    rows = {**settings, "trained on": ", ".join(signals) if signals else "not recorded"}
    return CARD.format(
        title=title,
        drawn=" or ".join(_DRAWN[name] for name in listed),
        attention=str(settings["attention"]).replace("_", "-"),
        call=_CALLS[listed[0]],
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )


def pipeline_settings(settings: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """Return what the card's table shows: the size (height, width) in pixels, and the editor's settings."""
    return {"works at": f"{size[0]} × {size[1]} px (height × width)", **settings}
