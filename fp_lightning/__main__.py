"""`python -m fp_lightning`, the same as `fp-lightning`."""

import sys

from fp_lightning.cli.main import main

sys.exit(main())
