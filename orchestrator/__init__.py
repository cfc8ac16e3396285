"""What to run, where, and what came of it. Knows nothing of images."""
