"""`python -m threedgen` is the command `threedgen`."""

import sys

from threedgen.cli import main

sys.exit(main())
