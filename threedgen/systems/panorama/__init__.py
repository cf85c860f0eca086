"""Panoramas: views all around, drawn together from text or around a picture."""
