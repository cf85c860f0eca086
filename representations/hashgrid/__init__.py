"""Multi-resolution hash grid (Mueller et al. 2022, "Instant NGP"), with several back ends."""
