"""The editor: video prior, control encoder, matching attention and their losses."""
