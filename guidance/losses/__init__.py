"""Distillation losses: SDS, its reconstruction form, and VSD."""
