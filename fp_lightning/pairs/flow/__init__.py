"""Optical flow between frames: one file per estimator, and a registry of their names."""
