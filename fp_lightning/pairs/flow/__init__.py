"""Optical flow between frames: one file an estimator, and a registry of their names."""
