"""`python -m imagen_video COMMAND`: the console script, for where it is not on PATH."""

import sys

from imagen_video.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
