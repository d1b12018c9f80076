"""Graph -> Graph: one rewrite per file; `pipeline.py` lists them."""
