"""`python launch.py --config NAME_OR_PATH key=value ...`: the command line, in a checkout or installed."""

import sys

from threedgen.cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
