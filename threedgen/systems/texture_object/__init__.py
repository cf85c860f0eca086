"""Six pictures of a thing, drawn or given, and its mesh wearing them."""
