"""The embedded multi-view prior is trained."""
