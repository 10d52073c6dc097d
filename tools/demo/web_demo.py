# Copyright (c) dan_mm contributors. All rights reserved.
"""Show the expressions of faces on a page in the browser: the same as
`dan-mm web`."""
from dan_mm.cli.web import main

if __name__ == '__main__':
    main()
