"""What this machine can do: versions, GPUs, video, weights on disk and installed extras."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGE = "fp-lightning"
LIBRARIES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
EXTRAS = ("lora", "quant", "flow", "ray", "demo", "heif", "notebooks", "docs")  # of pyproject.toml, for users
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    value: str
    remedy: str = ""  # how to get what is missing; empty if nothing is


def findings() -> list[Finding]:
    """Return everything that can be found without running a network."""
    return [*_versions(), *_gpus(), *_video(), *_weights(), *_extras()]


def installed(package: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "fp_lightning", installed(PACKAGE) or "not installed, run from its folder")
    yield Finding("versions", "Python", f"{platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        version = installed(library)
        yield Finding("versions", library, version or "missing", "" if version else f"pip install {library}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    known = f", {memory / GIB:.0f} GiB of memory" if memory else ""
    yield Finding("versions", "CPU", f"{os.cpu_count()} cores{known}")


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            remedy = "this torch is built without CUDA; https://pytorch.org/get-started/locally lists others"
        else:
            remedy = f"torch is built for CUDA {torch.version.cuda} but finds no GPU; see what `nvidia-smi` says"
        yield Finding("GPU", "CUDA", "no GPU, everything runs on the CPU", remedy)
    else:
        yield Finding("GPU", "CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        half = "bf16" if gpu.major >= 8 else "no bf16: train with --trainer.precision 16-mixed"
        free = torch.cuda.mem_get_info(number)[0] / GIB
        size = f"{gpu.total_memory / GIB:.1f} GiB, {free:.1f} free"
        yield Finding(
            "GPU", f"cuda:{number}", f"{gpu.name}, {size}, compute capability {gpu.major}.{gpu.minor}, {half}"
        )
    triton = installed("triton")
    missing = "pip install triton; without it the matching loss runs, but slower"
    yield Finding("GPU", "Triton", triton or "missing", "" if triton else missing)


def _video() -> Iterator[Finding]:
    import av

    libraries = ", ".join(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec",))
    yield Finding("video", "PyAV", f"{av.__version__} with FFmpeg's {libraries}")
    decoders = [name for name in ("h264", "hevc", "vp9", "av1") if name in av.codecs_available]
    yield Finding("video", "decoders", ", ".join(decoders))
    yield Finding("video", "ffmpeg", shutil.which("ffmpeg") or "no command ffmpeg; it is not needed")


def _weights() -> Iterator[Finding]:
    import torch
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    from fp_lightning.evaluation.perceptual import ALEXNET_URL, CLIP_MODEL
    from fp_lightning.model.svd.load import SHIPPED, SVD
    from fp_lightning.pairs.cotracker import WEIGHTS

    def found(group: str, path: Path | None, remedy: str) -> Finding:
        return Finding("weights", group, str(path) if path else "missing", "" if path else remedy)

    def cached(repository: str, *files: str) -> Path | None:
        for file in files:
            path = try_to_load_from_cache(repository, file)
            if isinstance(path, str):
                return Path(path)
        return None

    for name, folder in SHIPPED.items():
        part = folder / "unet" / "diffusion_pytorch_model.safetensors"
        yield found(name, part if part.is_file() else None, "install the package again")
    unet = "unet/diffusion_pytorch_model"
    yield found(
        "Stable Video Diffusion 1.1",
        cached(SVD, f"{unet}.fp16.safetensors", f"{unet}.safetensors"),
        f"accept the licence at https://huggingface.co/{SVD}, run `hf auth login`, then `hf download {SVD}`; "
        f"cache: {HF_HUB_CACHE}",
    )
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    alexnet = checkpoints / ALEXNET_URL.rpartition("/")[2]
    yield found("AlexNet for LPIPS", alexnet if alexnet.is_file() else None, f"put {ALEXNET_URL} into {checkpoints}")
    clip = cached(CLIP_MODEL, "model.safetensors", "pytorch_model.bin")
    yield found("CLIP for CLIP-FID", clip, f"hf download {CLIP_MODEL}")
    tracker = next((checkpoints / name for name in WEIGHTS if (checkpoints / name).is_file()), None)
    yield found(
        "CoTracker 3 (optional)", tracker, "`fp-lightning pairs --tracker cotracker3 --accept-license` downloads it"
    )


def _extras() -> Iterator[Finding]:
    requirements = (metadata.requires(PACKAGE) or []) if installed(PACKAGE) else []
    for extra in EXTRAS:
        needed = [line for line in requirements if re.search(rf"extra == ['\"]{extra}['\"]", line)]
        packages = [match[0] for line in needed if (match := re.match(r"[\w.-]+", line))]
        versions = {package: installed(package) for package in packages}
        have = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        missing = [package for package, version in versions.items() if version is None]
        if not packages:
            yield Finding("extras", extra, "unknown: the package is not installed")
        elif missing:
            also = f" ({have})" if have else ""
            remedy = f"pip install '{PACKAGE}[{extra}]'"
            yield Finding("extras", extra, f"missing: {', '.join(missing)}{also}", remedy)
        else:
            yield Finding("extras", extra, have)
