"""Distillation losses: SDS, its reconstruction form, VSD, ISM, CSD, SDI and JSD."""
