"""``python -m deltaw`` is the command ``deltaw``."""

from deltaw.cli import main

if __name__ == "__main__":
    main()
