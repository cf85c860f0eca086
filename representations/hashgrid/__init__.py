"""Multi-resolution hash grid: one convention (tiny-cuda-nn's), a torch twin, kernels for CPUs and GPUs.

Mueller, Evans, Schied, Keller: "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding",
2022.
"""
