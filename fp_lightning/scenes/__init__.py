"""Procedural scenes with exact flow."""
