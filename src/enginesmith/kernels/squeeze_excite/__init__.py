"""Squeeze-and-excitation: gates for the channels of an image from their means."""
