"""Command line of threedgen in a checkout: `python launch.py --config NAME_OR_PATH key=value ...`."""

import sys

if __name__ == "__main__":  # worker processes import this file again
    try:
        from threedgen.__main__ import main

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
