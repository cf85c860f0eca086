"""Words that make a run of a shipped config small, and leave what it does as it is."""

SMALL = [
    "threads=1", "prior.dtype=fp32", "march.samples=24", "march.chunk=3000", "occupancy.resolution=8",
    "result.turntable.n_view=2", "result.turntable.height=16", "result.turntable.width=16", "result.mesh_resolution=16",
    "export.enabled=false", "trainer.accelerator=cpu",
]  # fmt: skip


def small_field(place: str = "field", *more: str) -> list[str]:
    """Of the networks at this place of a config; ``more`` of its options."""
    sizes = ("encoding.n_levels=3", "encoding.log2_hashmap_size=8", "encoding.base_resolution=4", "width=8")
    return [f"{place}.{option}" for option in (*sizes, *more)]
