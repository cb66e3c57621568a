"""Ours against a baseline, both measured in the same run: see ``scripts/bench.py``."""
