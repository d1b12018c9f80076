"""The plan: frozen data and its file format. Imports nothing but errors."""
