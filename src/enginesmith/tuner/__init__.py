"""Times tactics on the target and chooses."""
