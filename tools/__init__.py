"""The laboratory, not installed: parity, benchmarks, sweep reports, what writes docs/."""
