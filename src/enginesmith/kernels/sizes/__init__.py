"""Sizes as data."""
