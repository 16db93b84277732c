"""`fp-lightning bench`: what things cost, each beside a reference measured in the same run."""
