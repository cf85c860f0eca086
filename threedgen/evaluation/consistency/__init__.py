"""How well the pictures of a novel-view sampler agree on one object (Watson et al. 2023, "3DiM", sections 4, 7.4)."""
