"""Studio: a browser page that generates objects from prompts, one run at a time."""
