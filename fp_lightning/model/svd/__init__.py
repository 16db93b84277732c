"""Stable Video Diffusion as the editor's video prior: all that is SVD's own."""
