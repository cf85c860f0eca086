"""Marks that tests of several folders have."""

import os

import pytest

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
"""For what runs whole commands in forked processes (task_server.py)."""
