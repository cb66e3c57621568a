"""Searches for a learning rate or a batch size by short training runs."""
