"""`python -m walloc_data` is `walloc-data`."""

import sys

from walloc_data.cli import main

sys.exit(main())
