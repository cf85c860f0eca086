"""Janus rate of text-to-3D methods: fraction of the generated objects that have two or more fronts.

The rate is corrected for the errors of the Janus meter, which counts fronts with a classifier of views.
"""
