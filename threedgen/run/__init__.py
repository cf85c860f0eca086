"""Modules that all runs use: run folders, caches, metrics, progress display, interrupts, worker processes, seeding."""
