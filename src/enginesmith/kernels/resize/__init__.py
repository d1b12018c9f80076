"""Interpolation to another size."""
