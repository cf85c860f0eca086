"""Distillation losses, which train a 3D object by the noise that a frozen prior predicts in its noisy renders.

SDS, its reconstruction form, VSD, ISM, CSD, SDI and JSD; each has a config model in `options`.
"""
