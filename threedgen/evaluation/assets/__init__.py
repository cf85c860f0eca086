"""How near a prior comes to users' own assets."""
