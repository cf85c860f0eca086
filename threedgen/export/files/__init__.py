"""Files that other programs take, and their checkers."""
