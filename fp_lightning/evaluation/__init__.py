"""Score edited images of any system, compare systems, and prepare a user study."""
