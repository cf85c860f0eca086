"""Many objects: prompts x configs x seeds, each a run of its own, made by as many workers as there are."""
