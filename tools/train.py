# Copyright (c) dan_mm contributors. All rights reserved.
"""Train a model: the same as `dan-mm train`."""
from dan_mm.cli.train import main

if __name__ == '__main__':
    main()
