"""Views of scenes that are drawn together: do they agree where they overlap, and do they look like true ones?"""
