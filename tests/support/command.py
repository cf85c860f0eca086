"""A command in the process of the test."""

import pytest

from threedgen import cli


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the last line of the error of a command that ends with code 2 and without a traceback."""
    code, _, err = ask(capsys, *words)
    assert code == 2 and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main([*words])
    output = capsys.readouterr()
    return code, output.out, output.err
