"""`python -m bench.peers`; see command.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The source tree, which -m puts first, may not be built: an installed convkern goes before it.
    sys.path.append(sys.path.pop(0))
    bench = Path(__file__).resolve().parents[1]
    # As in pytest.ini: the tests describe the operations, and have the oracle.
    sys.path[:0] = [str(bench), str(bench.parent / "tests")]

    from .command import main

    sys.exit(main())
