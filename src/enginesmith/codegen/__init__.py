"""Expressions and programs as C text."""
