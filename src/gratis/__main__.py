"""`python -m gratis` is the command `gratis`, so that launchers such as torchrun can start it."""

import sys

from gratis.cli import main

sys.exit(main())
