"""Inference: edit photos with a trained editor."""
