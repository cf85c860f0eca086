"""Tools for the tests of plug-ins: a tiny prior, and checks that a representation, loss or prior follows its interface.

    from threedgen.testing import check_representation

    def test_mine():
        check_representation(lambda generator: Mine(MineConfig(), generator))

A failed check raises AssertionError. The interface has the version `threedgen.INTERFACE_VERSION`.
"""

from threedgen.testing.checks import check_distillation, check_prior, check_representation
from threedgen.testing.prior import tiny_prior

__all__ = ["check_distillation", "check_prior", "check_representation", "tiny_prior"]
