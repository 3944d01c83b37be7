"""python -m dias_lab COMMAND; the commands are in shell/."""

import sys

from dias_lab.shell import main

if __name__ == "__main__":
    sys.exit(main())
