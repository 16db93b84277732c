"""Scores of any system's images on the same examples, their comparison, and a study among people."""
