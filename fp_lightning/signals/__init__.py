"""What a user would have drawn, made from a `VideoPair` at load time."""
