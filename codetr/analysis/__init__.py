"""Analyses of runs and checkpoints: each reads files and writes a table and figures."""
