"""Load, save and upload a pipeline."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi

from fp_lightning.errors import InputError
from fp_lightning.files import well_formed, write_text
from fp_lightning.model.svd.load import local_folder
from fp_lightning.weights.folders import empty_networks, open_part, read_index, read_json
from fp_lightning.weights.saving import save_over
from fp_lightning.weights.tensorfiles import check_weights

ALIGNMENT = 64  # bytes, the alignment of memory that torch allocates


class SavedPipeline(DiffusionPipeline):
    """A diffusers pipeline with checked loading, atomic model cards and no pickles."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, model: str | os.PathLike, *, dtype: Any = torch.float32, variant: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a saved pipeline. Names and shapes of all weights are checked first.

        Args:
            model: a folder that `save_pretrained` or `fp-lightning convert` wrote, a hub id, or "tiny-editor".
            dtype: type of all parts. The VAE runs in float32 if its configuration sets `force_upcast`. `torch_dtype` is
                an older name of this argument.
            variant: variant of the weight files, for example "fp16".
            kwargs: parts that replace the saved ones, and arguments of `DiffusionPipeline.from_pretrained`.
                Weights are safetensors; pickles are not opened.

        Raises:
            InputError: the folder or the hub repository is missing, gated, unreachable, damaged, or no
                FramePainter pipeline.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise InputError("use_safetensors is False, which would open pickles; leave it out")
        remote = {
            name: kwargs.pop(name) for name in ("revision", "token", "cache_dir", "force_download") if name in kwargs
        }
        stem = f"*.{variant}*" if variant else "*"
        patterns = ["*.json", "*/*.json", f"*/{stem}.safetensors"]
        folder = local_folder(str(model), patterns, local_files_only=kwargs.get("local_files_only", False), **remote)
        read_index(folder)
        read_json(folder / "scheduler" / "scheduler_config.json")
        networks = {part: network for part, network in empty_networks(folder).items() if part not in kwargs}
        check_weights(networks, {part: open_part(folder, part, variant) for part in networks}, str(model))
        with well_formed(folder / "model_index.json", "check the arguments, or download or copy the folder again"):
            pipe = super().from_pretrained(
                str(folder), dtype=kwargs.pop("torch_dtype", dtype), variant=variant, use_safetensors=True, **kwargs
            )
        for part in networks:
            for weight in getattr(pipe, part).parameters():
                # memory-mapped weights can be unaligned, which changes the last bits of results
                if weight.device.type == "cpu" and weight.data_ptr() % ALIGNMENT:
                    weight.data = weight.data.clone()
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder in diffusers' format. Add a model card, README.md, if the folder has none.

        Weights of an earlier save of the same variant are deleted, see `save_over`.

        Args:
            save_directory: the folder.
            kwargs: arguments of `DiffusionPipeline.save_pretrained`, and with `push_to_hub=True` those of
                `push_to_hub`.

        Raises:
            InputError: `safe_serialization` is False.
        """
        if kwargs.pop("safe_serialization", True) is False:
            raise InputError("safe_serialization is False, which would write pickles; leave it out")
        folder, push = Path(save_directory), kwargs.pop("push_to_hub", False)
        names = ("repo_id", "private", "token", "commit_message", "create_pr")
        upload = {name: kwargs.pop(name) for name in names if name in kwargs}
        save = super().save_pretrained
        save_over(folder, lambda new: save(str(new), **kwargs), kwargs.get("variant"))
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", self.model_card(upload.get("repo_id", folder.name)))
        if push:
            self._upload(folder, **{"repo_id": folder.name, **upload})

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload FramePainterPipeline",
        create_pr: bool = False,
        variant: str | None = None,
    ) -> str:
        """Upload the pipeline with its model card, and return the URL of the commit.

        Args:
            repo_id: hub id of the repository, which is created if it does not exist.
            private: create the repository as private.
            token: access token; None uses the saved login.
            commit_message: message of the commit.
            create_pr: open a pull request instead of a commit on the main branch.
            variant: variant of the weight files, for example "fp16".
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, repo_id=repo_id)
            return self._upload(Path(folder), repo_id, private, token, commit_message, create_pr)

    @staticmethod
    def _upload(
        folder: Path,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload FramePainterPipeline",
        create_pr: bool = False,
    ) -> str:
        """Upload a folder, and return the URL of the commit."""
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message, create_pr=create_pr)
        return str(commit)

    @abstractmethod
    def model_card(self, title: str) -> str:
        """Return the model card in Markdown."""
