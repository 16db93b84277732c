"""Editing signals, derived from a `VideoPair` as a user would have drawn them (paper, section 3.3)."""
