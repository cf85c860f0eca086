"""Speed, measured by one command: python -m benchmarks NAME (README.md in this folder)."""
