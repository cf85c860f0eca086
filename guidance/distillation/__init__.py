"""How a prior's opinion becomes a loss: SDS, its reconstruction form, VSD."""
