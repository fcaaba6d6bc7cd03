"""``python -m deltaw`` is the command ``deltaw``."""

import sys

from deltaw.cli import main

if __name__ == "__main__":
    sys.exit(main())
