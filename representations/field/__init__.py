"""Fields of density and colour, and backgrounds."""
