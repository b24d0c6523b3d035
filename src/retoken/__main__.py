"""`python -m retoken` is the command line."""

import sys

from retoken.cli.main import main

sys.exit(main())
