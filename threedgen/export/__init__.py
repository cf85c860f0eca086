"""From a field to files that other programs take."""
