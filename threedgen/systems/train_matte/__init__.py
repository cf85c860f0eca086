"""Training the network that tells the things in a prior's pictures from what is behind them."""
