"""Compare our numbers with those of the official implementations."""
