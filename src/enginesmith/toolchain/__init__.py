"""Text -> binary, with one content-addressed artifact cache."""
