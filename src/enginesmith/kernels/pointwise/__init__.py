"""Expression trees over whole tensors."""
