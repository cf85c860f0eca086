"""Support of runs: folders, caches, metrics, progress display, interrupts, worker processes and seeding."""
