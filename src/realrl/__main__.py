"""`python -m realrl` is the command `realrl`."""

import sys

from realrl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
