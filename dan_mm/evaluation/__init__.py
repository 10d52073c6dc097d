# Copyright (c) dan_mm contributors. All rights reserved.
from .balanced_accuracy import BalancedAccuracy
from .calibration import (CalibrationError, expected_calibration_error,
                          fit_temperature)
from .dump_results import AtomicDumpResults

__all__ = [
    'AtomicDumpResults', 'BalancedAccuracy', 'CalibrationError',
    'expected_calibration_error', 'fit_temperature'
]
