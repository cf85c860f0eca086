"""Benchmarks of speed and asset quality: python -m benchmarks NAME. README.md in this folder describes them."""
