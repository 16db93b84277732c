"""A pretended GPU for tests on machines without one."""

import pytest
import torch

from gpu_paths.pretended import PretendedGPU, convert


@pytest.fixture
def gpu(monkeypatch):
    """Pretend a GPU with bfloat16 while the test runs; see `PretendedGPU`."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *args: self)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # autocast asks these
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.nn.Module, "_apply", convert)
    with PretendedGPU() as mode:
        yield mode
