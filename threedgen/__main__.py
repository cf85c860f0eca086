"""`python -m threedgen` is the command `threedgen`, and `python launch.py` in a checkout."""

import sys


def main() -> int:
    """The command line; also Ctrl-C while it is still being imported is no traceback."""
    try:
        from threedgen.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())
