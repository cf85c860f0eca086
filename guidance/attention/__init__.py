"""Attention processors across views, for stock UNets."""
