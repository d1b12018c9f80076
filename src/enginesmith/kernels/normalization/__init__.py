"""Normalization by the statistics of rows."""
