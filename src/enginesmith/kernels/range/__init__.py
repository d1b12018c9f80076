"""Arithmetic sequences."""
