"""Weight files and model folders, in and out."""
