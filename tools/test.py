# Copyright (c) dan_mm contributors. All rights reserved.
"""Test a model on a dataset: the same as `dan-mm test`."""
from dan_mm.cli.test import main

if __name__ == '__main__':
    main()
