"""Lightning modules and what surrounds a run."""
