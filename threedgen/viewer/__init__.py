"""Report page of a run and gallery of many runs (self-contained HTML, no torch), and live view of an active run."""
