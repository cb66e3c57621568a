"""Sweeps: their jobs, which are separate commands, the runners and the table of results."""
