"""Finds the outline of the object at a click, with a SAM model (Kirillov et al. 2023, arXiv 2304.02643)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fp_lightning.demo.drawing import outline
from fp_lightning.errors import InputError
from fp_lightning.model.svd.load import local_folder

SAM = "facebook/sam-vit-base"


class Segmenter:
    """Finds the outline of the object at a position.

    Args:
        model: folder in transformers' format, or hub id, of a model for mask generation.
        device: where it runs.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        from transformers import AutoModelForMaskGeneration, AutoProcessor

        folder = local_folder(model, ["*.json", "*.safetensors"], example=SAM)
        try:
            self.model = AutoModelForMaskGeneration.from_pretrained(folder, use_safetensors=True).to(device).eval()
            self.processor = AutoProcessor.from_pretrained(folder)
        except Exception as error:  # transformers raises many kinds
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{model} cannot be loaded as a segmenter ({reason}); set --segmenter to a folder of {SAM} or a "
                "similar model"
            ) from error

    def find(self, image: Image.Image, x: float, y: float) -> list[list[float]] | None:
        """Return the outline [n, 2] of the object at a position, in pixels; None if there is none.

        Args:
            image: RGB.
            x, y: in pixels.
        """
        mask = self._mask(image, x, y)
        _, parts = cv2.connectedComponents(mask.astype(np.uint8))
        row, column = min(int(y), image.height - 1), min(int(x), image.width - 1)
        if not mask[row, column]:
            return None
        found = outline(parts == parts[row, column])
        return found.tolist() if len(found) > 2 else None

    @torch.no_grad()
    def _mask(self, image: Image.Image, x: float, y: float) -> NDArray[np.bool_]:
        """The mask with the highest predicted score, bool [h, w]."""
        inputs: Any = self.processor(
            images=image, input_points=[[[[x, y]]]], input_labels=[[[1]]], return_tensors="pt"
        ).to(self.model.device)
        sizes = [inputs.pop(name).cpu() for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        found = self.model(**inputs)
        masks = self.processor.post_process_masks(found.pred_masks.cpu(), *sizes)[0][0]
        return np.asarray(masks[int(found.iou_scores.flatten().argmax())].numpy(), bool)
