"""A command in the process of the test."""

import pytest

from threedgen import cli


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main([*words])
    output = capsys.readouterr()
    return code, output.out, output.err
