"""Side by side with other engines: speed, accuracy, memory. Run from the repository's root."""
