"""`python -m gafscope`."""

import sys

from gafscope.cli import main

sys.exit(main())
