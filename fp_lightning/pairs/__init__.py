"""From videos to stored pairs: decode, flow, tracks, filter, write."""
