"""Marks that tests of several folders have."""

import os

import pytest

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
