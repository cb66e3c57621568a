"""What exists only to train: assigners, criteria, auxiliary heads and schemes."""
