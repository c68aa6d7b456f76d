"""`python -m saecore` is the `saecore` command."""

import sys

from saecore.cli import main

sys.exit(main())
