"""The page of a sweep: what its runs say, seed by seed; see ``scripts/sweep_report.py``."""
