"""Procedural world of captioned toys: objects, rooms, captions and the ray caster."""
