"""Entry point of `python -m threedgen`, of the command `threedgen` and of launch.py."""

import sys


def main() -> int:
    """Run the command line and return its exit code. Ctrl-C during the slow imports prints no traceback."""
    try:
        from threedgen.cli import main as command

        return command()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
