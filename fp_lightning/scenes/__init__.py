"""Procedural scenes with exact flow, tracks and visibility."""
