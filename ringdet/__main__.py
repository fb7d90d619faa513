"""`python -m ringdet` is the command `ringdet`."""

import sys

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from ringdet.command import main

sys.exit(main())
