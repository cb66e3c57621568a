"""Comparing our numbers with those that the official implementations gave."""
