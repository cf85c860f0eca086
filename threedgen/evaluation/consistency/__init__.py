"""3D consistency score of novel-view samplers (Watson et al. 2023, "3DiM", sections 4 and 7.4).

A neural field is fitted to most views of a scene, and its renders are compared with the held-out views.
"""
