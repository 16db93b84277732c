"""The command `fp-lightning`."""
