# Copyright (c) dan_mm contributors. All rights reserved.
from .model_index import register_model_index

__all__ = ['register_model_index']
