"""Benchmarks of lthlab: `python -m benchmarks` measures, `catalogue` says what, docs/performance.md shows it."""
