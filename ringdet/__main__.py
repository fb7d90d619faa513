"""`python -m ringdet` is the command `ringdet`."""

import sys

from ringdet.command import main

sys.exit(main())
