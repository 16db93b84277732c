"""Files that users hand in: images, videos and saved edits."""
