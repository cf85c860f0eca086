"""A run: its folder, what is written there, how it is told and stopped, and where its random numbers come from."""
