"""`python -m threedgen` is the command `threedgen`, and `python launch.py` in a checkout."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C during its import prints no traceback either."""
    try:
        from threedgen.cli import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
