# Copyright (c) dan_mm contributors. All rights reserved.
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not have all the weights that the model
    predicts with.

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
            ValueError: If a weight is missing or has another shape.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        found = checkpoint.get('state_dict', checkpoint)
        problems = []
        for key, value in model.state_dict().items():
            if key.startswith('head.loss_'):
                continue  # class centres are for training only
            if key not in found:
                problems.append(f'{key} is missing')
            elif found[key].shape != value.shape:
                problems.append(f'{key} has the shape '
                                f'{tuple(found[key].shape)}, expected '
                                f'{tuple(value.shape)}')
        if problems:
            more = f' and {len(problems) - 3} more' if problems[3:] else ''
            raise ValueError(
                'The checkpoint does not fit the model of this config: '
                f'{"; ".join(problems[:3])}{more}. Test it with the config '
                'that it was trained with.')
