"""Sweeps: jobs that are commands of their own, where they run, and what came of them."""
