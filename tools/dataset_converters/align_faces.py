# Copyright (c) dan_mm contributors. All rights reserved.
"""Find the faces of a tree of images, and write the same tree of aligned
crops: the same as `dan-mm align`."""
import sys

from dan_mm.cli.align import main

if __name__ == '__main__':
    sys.exit(main())
