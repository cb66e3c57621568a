"""The laboratory: parity with the official code, and benchmarks; not installed."""
