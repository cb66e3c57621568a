"""The laboratory: parity with the official code, benchmarks, what writes docs/; not installed."""
