"""Borders around a tensor."""
