"""Views of one object straight from the prior."""
