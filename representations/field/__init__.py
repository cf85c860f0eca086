"""Fields: what is where, and what colour it has."""
