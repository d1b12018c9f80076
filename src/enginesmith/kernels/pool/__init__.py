"""Maximum and average over windows."""
