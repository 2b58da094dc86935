"""`python -m sightline` is the `sightline` command."""

import sys

from .cli.main import main

sys.exit(main())
