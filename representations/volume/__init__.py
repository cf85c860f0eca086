"""Volume rendering of fields."""
