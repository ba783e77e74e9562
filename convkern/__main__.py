"""``python -m convkern`` is the command ``convkern``."""

import sys

from convkern.cli import main

if __name__ == "__main__":
    sys.exit(main())
