"""Attention processors that let the views of an object attend to each other, for UNets of diffusers."""
