"""Zeros around blocked planes."""
