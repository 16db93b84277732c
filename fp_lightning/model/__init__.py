"""The editor's network."""
