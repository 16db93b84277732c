"""Build training pairs from videos: decode, estimate flow and tracks, filter, store (paper, section 3.3)."""
