"""What only a GPU can tell: the parts of ``scripts/gpu_check.py``."""
