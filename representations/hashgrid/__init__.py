"""Multi-resolution hash grid (Mueller et al. 2022, "Instant NGP"): a torch twin, kernels for CPUs and GPUs."""
