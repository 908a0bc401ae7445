"""`python -m qspec` is the command `qspec`."""

import sys

from qspec.cli import main

sys.exit(main())
