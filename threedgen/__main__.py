"""Entry point of `python -m threedgen`, of the command `threedgen` and of launch.py."""

import sys


def main() -> int:
    """Run the command line and return its exit code. Ctrl-C or a missing package at import prints no traceback."""
    try:
        try:
            from threedgen.cli import main as command
        except ImportError as error:
            if (error.name or "").startswith("threedgen"):
                raise
            sys.stderr.write(
                f"{error}: Python {sys.version.split()[0]}, {sys.executable}. Activate the virtual environment .venv, "
                "or install threedgen again, with Python 3.11 or newer: pip install -e . -c constraints.txt\n"
            )
            return 2
        return command()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
