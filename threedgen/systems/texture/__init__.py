"""Pictures of a scene of known shape, drawn together from words, and its mesh wearing them."""
