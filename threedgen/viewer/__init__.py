"""Report page of a run, gallery of many runs (self-contained HTML, no torch), and live view of a running one."""
