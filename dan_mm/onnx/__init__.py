# Copyright (c) dan_mm contributors. All rights reserved.
"""Models as ONNX files: export, and a runtime without PyTorch."""
