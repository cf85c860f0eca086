"""A page in a browser on which prompts become objects, one after the other."""
