# Copyright (c) dan_mm contributors. All rights reserved.
import re

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint whose weights are not those that the model predicts
    with.

    MMEngine loads what fits, logs the rest and goes on with random weights.
    That is wanted where training starts from other weights, never where a
    model is tested: ``tools/test.py`` registers this hook.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model.

        Args:
            runner (Runner): The runner, with its model.
            checkpoint (dict): The loaded checkpoint.

        Raises:
            ValueError: If a weight is missing, left over or of another shape.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        weights = {
            re.sub(r'^module\.', '', key): value
            for key, value in checkpoint.get('state_dict', checkpoint).items()
        }
        try:
            # It raises where a weight has another shape.
            keys = model.load_state_dict(weights, strict=False)
            problems = [f'{key} is missing' for key in keys.missing_keys
                        ] + [f'{key} is left over'
                             for key in keys.unexpected_keys]  # yapf: disable
            # The class centres are for training only.
            problems = [
                problem for problem in problems
                if not problem.startswith('head.loss_')
            ]
        except RuntimeError as error:
            problems = [line.strip() for line in str(error).split('\n')[1:]]
        if problems:
            more = f' and {len(problems) - 3} more' if problems[3:] else ''
            raise ValueError(
                'The checkpoint does not fit the model of this config: '
                f'{"; ".join(problems[:3])}{more}. Test it with the config '
                'that it was trained with.')
