"""Random textures for procedural scenes: noise, stripes, blots and leaves."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def texture(rng: np.random.Generator, n: int) -> Array:
    """Draw a periodic texture, float32 [n, n, 3] in [0, 1]: noise, stripes, blots or leaves."""
    mean = np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, rng.uniform(0.02, 0.25), 3), 0.05, 0.95)
    axes = rng.normal(0, 1, (3, 3)) * np.array([1.0, 0.35, 0.15])[:, None]  # colours vary mostly along one axis
    axes[0] = axes[0] * rng.uniform(0.05, 0.5) + rng.normal(0, 1)
    octave = _power_noise(rng, n, exponent=rng.uniform(0.8, 2.0))
    kind = rng.integers(4)
    if kind == 0:
        pattern = octave
    elif kind == 1:
        y, x = np.mgrid[:n, :n] / n * 2 * np.pi
        kx, ky = rng.integers(-9, 10, 2)
        wave = np.sin(kx * x + ky * y + octave[..., 0] * rng.uniform(0, 1.5))
        pattern = octave * 0.4 + (np.sign(wave) if rng.random() < 0.5 else wave)[..., None] * rng.normal(0, 1, 3)
    elif kind == 2:
        pattern = np.tanh(octave * rng.uniform(1, 6))
    else:
        pattern = _leaves(rng, n) + octave * rng.uniform(0.05, 0.4)
    contrast = rng.uniform(0.04, 0.32)
    return np.clip(mean + contrast * (pattern @ axes), 0, 1).astype(np.float32)


def _power_noise(rng: np.random.Generator, n: int, exponent: float) -> NDArray:
    """Draw periodic noise [n, n, 3] with amplitude 1 / frequency^exponent and unit variance."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]) * n
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1) ** -exponent, 0)
    spectrum = np.fft.rfft2(rng.normal(size=(n, n, 3)), axes=(0, 1)) * amplitude[..., None]
    noise = np.fft.irfft2(spectrum, s=(n, n), axes=(0, 1))
    return noise / (noise.std() + 1e-8)


def _leaves(rng: np.random.Generator, n: int) -> NDArray:
    """Draw dead leaves [n, n, 3]: overlapping ellipses, boxes and lines of power-law sizes in flat colours."""
    canvas = np.zeros((n, n, 3), np.float32)
    for _ in range(int(rng.integers(20, 120))):
        radius = max(1, int(n * 0.02 * rng.pareto(1.6) + 1)) % (n // 2)
        centre = tuple(int(v) for v in rng.integers(0, n, 2))
        colour = tuple(float(v) for v in rng.normal(0, 1.2, 3))
        shape = rng.integers(3)
        other = (centre[0] + int(rng.integers(-radius, radius + 1)), centre[1] + radius)
        if shape == 0:
            axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
            cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1)
        elif shape == 1:
            cv2.rectangle(canvas, centre, other, colour, -1)
        else:
            cv2.line(canvas, centre, other, colour, max(1, radius // 4))
    return canvas
