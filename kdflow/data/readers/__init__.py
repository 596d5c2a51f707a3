"""Dataset readers, one module each."""
