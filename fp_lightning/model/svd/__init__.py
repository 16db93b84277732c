"""Stable Video Diffusion as a video prior: everything that is specific to SVD."""
