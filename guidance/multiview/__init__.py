"""Attention processors that make a stock UNet see several views."""
