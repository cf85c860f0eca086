"""Views of a thing straight from MV-Adapter."""
