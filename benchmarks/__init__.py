"""Speed, measured by one command: python -m benchmarks (README.md in this folder)."""
