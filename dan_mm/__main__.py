# Copyright (c) dan_mm contributors. All rights reserved.
import sys

from dan_mm.cli import main

if __name__ == '__main__':
    sys.exit(main())
