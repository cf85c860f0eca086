"""Distillation losses: SDS, its reconstruction form, VSD."""
