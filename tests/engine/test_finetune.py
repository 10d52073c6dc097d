# Copyright (c) dan_mm contributors. All rights reserved.
"""Fine-tuning on other classes beside hooks and wrappers of MMEngine."""
import cv2
import pytest
import torch
from conftest import draw_face
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from tiny_training import config

from dan_mm import cli


@pytest.fixture(scope='module')
def trained(ferplus_root, tmp_path_factory):
    """The config file of a training and its checkpoint, with a moving average
    and without."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('trained')
    paths = {}
    for ema in False, True:
        cfg = config(
            ferplus_root, folder / f'ema_{ema}', train_cfg__max_epochs=1)
        if ema:
            cfg.custom_hooks.append(dict(type='EMAHook'))
        cfg.train_dataloader.dataset.indices = 8
        cfg.val_dataloader.dataset.indices = 8
        Runner.from_cfg(cfg).train()
        paths[ema] = folder / f'ema_{ema}' / 'epoch_1.pth'
    cfg = config(ferplus_root, folder, train_cfg__max_epochs=1)
    cfg.dump(folder / 'tiny.py')
    for label, name in enumerate(('glad', 'grim', 'glum')):
        (folder / 'mine' / name).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(f'{folder}/mine/{name}/{i}.png', draw_face(i + label))
    yield folder, paths
    torch.set_num_threads(number)


class Watch(Hook):
    """Compare the moving average with the model before the first step."""
    priority = 'VERY_LOW'
    runner = None

    def before_train(self, runner):
        type(self).runner = runner
        self.model = {
            key: value.clone()
            for key, value in runner.model.state_dict().items()
        }
        for hook in runner.hooks:
            average = getattr(hook, 'ema_model', None)
            if average is not None:
                for key, value in average.module.state_dict().items():
                    assert torch.equal(value, self.model[key]), key


HEAD = 'optim_wrapper.paramwise_cfg.custom_keys.head'

HOOKS_BESIDE = [
    dict(type='EMAHook'),
    dict(type='EMAHook', strict_load=True, update_buffers=True),
    dict(type='EMAHook', evaluate_on_origin=True, evaluate_on_ema=True),
    dict(type='EMAHook', ema_type='StochasticWeightAverage', begin_epoch=1),
    dict(type='mmengine.EMAHook', strict_load=True),
    dict(type='EarlyStoppingHook', monitor='accuracy/top1'),
    dict(type='PreciseBNHook', num_samples=8, interval=1),
]


@pytest.mark.parametrize(
    'hook', HOOKS_BESIDE, ids=lambda hook: '-'.join(map(str, hook.values())))
def test_hooks(trained, tmp_path, hook):
    folder, paths = trained
    # The weights are those of an average for every other hook.
    ema = HOOKS_BESIDE.index(hook) % 2
    if not HOOKS.get('Watch'):
        HOOKS.register_module(module=Watch)
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.custom_hooks += [hook, dict(type='Watch')]
    cfg.dump(tmp_path / 'tiny.py')
    cli.main([
        'train',
        str(tmp_path / 'tiny.py'), '--finetune',
        str(paths[ema]),
        str(folder / 'mine'), '--work-dir',
        str(tmp_path / 'work'), '--cfg-options', f'{HEAD}.lr_mult=10',
        f'{HEAD}.fc.decay_mult=0'
    ])
    saved = torch.load(tmp_path / 'work' / 'epoch_1.pth', weights_only=False)
    assert saved['state_dict']['head.fc.weight'].shape[0] == 3
    assert len(Watch.runner.optim_wrapper.param_groups) > 1
