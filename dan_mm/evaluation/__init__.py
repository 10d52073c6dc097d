# Copyright (c) dan_mm contributors. All rights reserved.
from .balanced_accuracy import BalancedAccuracy
from .calibration import (CalibrationError, expected_calibration_error,
                          fit_temperature)

__all__ = [
    'BalancedAccuracy', 'CalibrationError', 'expected_calibration_error',
    'fit_temperature'
]
