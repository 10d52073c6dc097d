# Copyright (c) dan_mm contributors. All rights reserved.
import mmengine
from mmengine.evaluator import DumpResults
from mmpretrain.registry import METRICS

from dan_mm.engine.checkpoint_hook import AtomicLocalBackend  # noqa: F401


@METRICS.register_module()
class AtomicDumpResults(DumpResults):
    """:class:`mmengine.evaluator.DumpResults` by an atomic write."""

    def compute_metrics(self, results: list) -> dict:
        """Dump the predictions to the pickle file."""
        mmengine.dump(
            results, self.out_file_path, backend_args=dict(backend='atomic'))
        return {}
