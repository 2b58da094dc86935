"""`python -m sightline` is the `sightline` command."""

import sys

from .cli import main

sys.exit(main())
