"""Data sets and files of the toybox: training images, rooms, subjects, SRN scenes, GLB files."""
