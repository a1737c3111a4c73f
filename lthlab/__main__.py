"""`python -m lthlab` is the command `lthlab`."""

import sys

from lthlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
