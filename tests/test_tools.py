# Copyright (c) dan_mm contributors. All rights reserved.
"""Training, resuming and testing, as a user runs them."""
import json
import os
import os.path as osp
import pickle
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from dan_mm import cli
from dan_mm.cli.config import check_start
from dan_mm.engine import CheckpointFitHook

DAN = f'{ROOT}/configs/dan_ferplus.py'


def run(tool, *arguments):
    """Run a tool in a process of its own and get what it printed."""
    process = subprocess.run(
        [sys.executable, f'{ROOT}/tools/{tool}.py', *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    return process.returncode, process.stdout


# A model with fewer channels
NARROW = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 64
}


def small(root, method='dan'):
    """The FER+ recipe on a few images, as overrides of the config."""
    options = dict(NARROW)
    if method == 'dan':
        options['model.neck.in_channels'] = 64
    for phase, number in ('train', 40), ('val', 16), ('test', 16):
        options.update({
            f'{phase}_dataloader.num_workers': 0,
            f'{phase}_dataloader.persistent_workers': False,
            f'{phase}_dataloader.batch_size': 8,
            f'{phase}_dataloader.dataset.data_root': str(root),
            f'{phase}_dataloader.dataset.indices': number
        })
    return options


def as_text(options):
    return [f'{key}={value}' for key, value in options.items()]


@pytest.fixture
def call(capfd):
    """Run a command in this process and get what it printed."""

    def call(*arguments):
        assert cli.main(list(map(str, arguments))) in (None, 0)
        output, error = capfd.readouterr()
        return error + output

    return call


def runner(root, work_dir, method='dan', **options):
    cfg = Config.fromfile(f'{ROOT}/configs/{method}_ferplus.py')
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict({
        **small(root, method),
        **{
            key.replace('__', '.'): value
            for key, value in options.items()
        }
    })
    return Runner.from_cfg(cfg)


@pytest.fixture(scope='module')
def trained(ferplus_root, tmp_path_factory):
    """The work folder of DAN, trained for one epoch by tools/train.py, and
    the overrides of the config."""
    work_dir = tmp_path_factory.mktemp('work')
    options = as_text(small(ferplus_root))
    code, output = run('train', 'configs/dan_ferplus.py', '--work-dir',
                       work_dir, '--amp', '--cfg-options', *options,
                       'train_cfg.max_epochs=1', 'randomness.seed=0')
    assert code == 0, output
    assert 'accuracy/top1' in output and 'accuracy/balanced' in output
    # It ends with where the model is, and what to type next.
    where, test, use = output.splitlines()[-3:]
    best = work_dir / 'best_accuracy_top1_epoch_1.pth'
    assert str(best) in where and best.is_file()
    config = work_dir / 'dan_ferplus.py'
    assert test.endswith(f'dan-mm test {config} {best}') and config.is_file()
    assert use.endswith(f'dan-mm predict photo.jpg --model {best}')
    return work_dir, options


@pytest.mark.slow
def test_train_resume_and_test(trained, tmp_path, call):
    work_dir, options = trained
    shutil.copytree(work_dir, tmp_path, dirs_exist_ok=True)
    output = call('train', DAN, '--work-dir', tmp_path, '--resume',
                  '--cfg-options', *options, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1' in output
    assert 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output

    test = 'test', DAN, tmp_path / 'epoch_2.pth', '--work-dir', tmp_path
    metrics = tmp_path / 'metrics.json'
    code, output = run(*test, '--out', metrics, '--out-item', 'metrics',
                       '--cfg-options', *options)
    assert code == 0, output
    metrics = json.loads(metrics.read_text())
    assert set(metrics) == {
        'accuracy/top1', 'accuracy/balanced', 'calibration/ece'
    }
    *log, header, top1, balanced, ece = output.splitlines()
    assert len(log) < 16 and header == 'Tested on 16 images:', output
    assert top1.split() == ['accuracy/top1', f'{metrics["accuracy/top1"]:.2f}']
    assert balanced.split()[0] == 'accuracy/balanced'
    assert ece.split() == [
        'calibration/ece', f'{metrics["calibration/ece"]:.4f}'
    ]
    test = 'test', tmp_path / 'dan_ferplus.py', *test[2:]
    output = call(*test, '--verbose', '--tta', '--amp', '--out',
                  tmp_path / 'predictions.pkl')
    assert 'System environment:' in output
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 16
    assert np.isclose(predictions[0]['pred_score'].sum(), 1)
    hits = [item['pred_label'] == item['gt_label'] for item in predictions]
    accuracy = re.search(r'accuracy/top1: ([0-9.]+)', output)[1]
    assert np.isclose(100 * np.mean(hits), float(accuracy))


def test_checkpoints_carry_centres_and_class_names(trained):
    checkpoint = torch.load(trained[0] / 'epoch_1.pth', weights_only=False)
    weights = checkpoint['state_dict']
    assert weights['head.loss_affinity.centers'].shape == (8, 64)
    assert checkpoint['meta']['dataset_meta']['classes'][1] == 'happiness'
    # The optimiser has them, too.
    states = checkpoint['optimizer']['state'].values()
    assert any(state['exp_avg'].shape == (8, 64) for state in states)


@pytest.mark.parametrize('method, options, message', [
    ('dan', dict(model__neck__num_heads=2), 'neck.heads.2.* is unexpected'),
    ('dan', dict(model__head__num_classes=7), 'head.fc.weight.*8.*7'),
    ('resnet18', {}, 'does not fit .*neck.heads.* is unexpected.*Use it with'),
    ('dan',
     dict(
         test_dataloader__dataset__target_classes=('happiness', 'neutral',
                                                   'surprise', 'sadness',
                                                   'anger', 'disgust', 'fear',
                                                   'contempt')),
     "trained on the classes .'neutral'.*expected the same"),
])
def test_a_checkpoint_of_another_model_is_refused(trained, ferplus_root,
                                                  tmp_path, method, options,
                                                  message):
    other = runner(
        ferplus_root,
        tmp_path,
        method,
        load_from=str(trained[0] / 'epoch_1.pth'),
        **options)
    other.register_hook(CheckpointFitHook())
    with pytest.raises(ValueError, match=message):
        other.test()


def test_the_fit_of_a_converted_checkpoint_needs_no_centres(
        trained, ferplus_root, tmp_path):
    weights = torch.load(
        trained[0] / 'epoch_1.pth', weights_only=False)['state_dict']
    del weights['head.loss_affinity.centers']
    torch.save(dict(state_dict=weights), tmp_path / 'converted.pth')
    same = runner(
        ferplus_root,
        tmp_path,
        load_from=str(tmp_path / 'converted.pth'),
        test_dataloader__dataset__indices=4)
    same.register_hook(CheckpointFitHook())
    assert 'accuracy/top1' in same.test()


@pytest.mark.parametrize('tool', ['train', 'visualization/attention_maps'])
def test_tools_are_safe_with_any_config(tool, tmp_path):
    """With a config that does not import this project, and says what loads
    checkpoints."""
    (tmp_path / 'config.py').write_text(
        "raise SystemExit(__import__('mmengine.runner', fromlist=['']).Check"
        "pointLoader._get_checkpoint_loader('x.pth').__module__)")
    code, output = run(tool, tmp_path / 'config.py',
                       *(['x.pth'] if tool != 'train' else []))
    assert code == 1 and output.endswith('dan_mm.checkpoint\n'), output


def merge(*arguments):
    args = cli.parse_args(['train', *arguments])
    return cli.train.merge_args(Config.fromfile(args.config), args)


def test_the_training_tool_merges_its_arguments():
    rafdb, ferplus, synthface = (f'{ROOT}/configs/dan_{name}.py'
                                 for name in ('rafdb', 'ferplus', 'synthface'))
    cfg = merge(rafdb, '--amp', '--auto-scale-lr', '--resume', '--seed', '7',
                '--cfg-options', 'train_cfg.max_epochs=3')
    assert cfg.randomness == dict(seed=7, deterministic=True)
    assert cfg.auto_scale_lr == dict(base_batch_size=256, enable=True)
    assert cfg.optim_wrapper.type in ('AmpOptimWrapper', 'CPUAmpOptimWrapper')
    assert cfg.resume and cfg.load_from is None
    assert cfg.train_cfg.max_epochs == 3
    assert cfg.work_dir == './work_dirs/dan_rafdb'
    with pytest.raises(SystemExit, match='set `eta_max`'):
        merge(ferplus, '--auto-scale-lr')
    for config, options in ((synthface, 'param_scheduler.total_steps=10'),
                            (ferplus, 'param_scheduler.0.total_steps=10 '
                             'param_scheduler.1.end=3 '
                             'param_scheduler.2.begin=3 '
                             'param_scheduler.2.end=10')):  # yapf: disable
        with pytest.raises(SystemExit) as error:
            merge(config, '--cfg-options', 'train_cfg.max_epochs=10')
        assert str(error.value).endswith(f'--cfg-options: {options}')
        merge(config, '--cfg-options', 'train_cfg.max_epochs=10',
              *options.split())


def own_folder(root):
    """Images of two classes that no dataset has."""
    for label, name in enumerate(('glad', 'grim')):
        (root / name).mkdir(parents=True)
        for i in range(17 + label):
            cv2.imwrite(
                str(root / name / f'{i}.png'), draw_face(2 * i + label))
    return root


@pytest.mark.slow
def test_finetune(trained, tmp_path, call):
    folder = own_folder(tmp_path / 'mine')
    work_dir = tmp_path / 'work'
    command = ('train', DAN, '--finetune', trained[0] / 'epoch_1.pth', folder,
               '--work-dir', work_dir, '--resume', '--cfg-options',
               *as_text(NARROW), 'model.neck.in_channels=64',
               'train_dataloader.batch_size=10',
               *(f'{phase}_dataloader.num_workers=0'
                 for phase in ('train', 'val', 'test')),
               'train_cfg.max_epochs=1')
    output = call(*command)
    assert "'neutral'" in output and "('glad', 'grim')" in output
    assert ('the head starts fresh (head.fc.weight, head.fc.bias, '
            'head.bn.weight, head.bn.bias, head.bn.running_mean, '
            'head.bn.running_var, head.bn.num_batches_tracked, '
            'head.loss_affinity.centers)' in output)
    assert '[3/3]' in output  # of 31 images, without the last one

    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    assert checkpoint['meta']['dataset_meta']['classes'] == ('glad', 'grim')
    assert checkpoint['state_dict']['head.fc.weight'].shape == (2, 64)
    # Interrupted fine-tuning goes on.
    output = call(*command[:-1], 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1' in output and 'starts fresh' not in output
    # The dumped config tests it.
    output = call('test', work_dir / 'dan_ferplus.py',
                  work_dir / 'epoch_2.pth', '--work-dir', tmp_path)
    assert 'accuracy/top1' in output


def test_finetuning_keeps_all_but_the_head(trained, tmp_path, monkeypatch):
    # Loads, and does not train.
    monkeypatch.setattr(EpochBasedTrainLoop, 'run', lambda self: None)
    folder = own_folder(tmp_path / 'mine')
    cfg = merge(DAN, '--finetune', str(trained[0] / 'epoch_1.pth'),
                str(folder), '--cfg-options', f'work_dir={tmp_path}',
                *as_text(NARROW), 'model.neck.in_channels=64')
    assert cfg.model.head.num_classes == 2
    start = Runner.from_cfg(cfg)
    start.register_hook(CheckpointFitHook(new_classes=True))
    fresh = {}

    class Before(Hook):

        def after_load_checkpoint(self, runner, checkpoint):
            fresh.update({
                key: value.clone()
                for key, value in runner.model.state_dict().items()
            })

    start.register_hook(Before())
    start.train()
    source = torch.load(
        trained[0] / 'epoch_1.pth', weights_only=False)['state_dict']
    for key, value in start.model.state_dict().items():
        same = fresh if key.startswith('head.') else source
        assert torch.equal(value, same[key]), key


def test_the_same_classes_keep_the_head(trained, ferplus_root, tmp_path,
                                        monkeypatch):
    monkeypatch.setattr(EpochBasedTrainLoop, 'run', lambda self: None)
    start = runner(
        ferplus_root, tmp_path, load_from=str(trained[0] / 'epoch_1.pth'))
    start.register_hook(CheckpointFitHook(new_classes=True))
    start.train()
    source = torch.load(
        trained[0] / 'epoch_1.pth', weights_only=False)['state_dict']
    for key, value in start.model.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_finetuning_needs_all_weights(trained, tmp_path):
    folder = own_folder(tmp_path / 'mine')
    # Of another width, of other heads, without heads.
    for options, message in (
        (['model.neck.num_heads=2'], 'neck.heads.2.* is unexpected'),
        ([
            'model.backbone.base_channels=4', 'model.neck.in_channels=32',
            'model.head.in_channels=32'
        ], 'does not fit.*backbone.layer1.*4'),
        (['model.backbone.stem_channels=4'],
         'does not fit.*backbone.conv1.weight.*4'),
    ):
        cfg = merge(DAN, '--finetune', str(trained[0] / 'epoch_1.pth'),
                    str(folder), '--cfg-options', f'work_dir={tmp_path}',
                    *as_text(NARROW), 'model.neck.in_channels=64', *options)
        start = Runner.from_cfg(cfg)
        start.register_hook(CheckpointFitHook(new_classes=True))
        with pytest.raises(ValueError, match=message):
            start.train()


def test_resuming_with_other_classes_is_refused(trained, tmp_path):
    work_dir = tmp_path / 'work'
    shutil.copytree(trained[0], work_dir)
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    cfg.merge_from_dict(small(tmp_path))
    names = [f'c{i}' for i in range(8)]
    for name in names:
        (tmp_path / 'mine' / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(f'{tmp_path}/mine/{name}/{i}.png', draw_face(i))
    cfg.train_dataloader.dataset = dict(
        type='FERFolder',
        data_root=f'{tmp_path}/mine',
        pipeline=cfg.train_dataloader.dataset.pipeline)
    cfg.update(work_dir=str(work_dir), resume=True, val_cfg=None)
    cfg.update(val_dataloader=None, val_evaluator=None)
    cfg.train_cfg.max_epochs = 2
    resumed = Runner.from_cfg(cfg)
    resumed.register_hook(CheckpointFitHook())
    with pytest.raises(ValueError, match="'neutral'.*'c0'.*--finetune"):
        resumed.train()


def test_finetuning_on_photographs_is_warned_of(tmp_path, capsys):
    folder = own_folder(tmp_path / 'mine')
    arguments = (f'{ROOT}/configs/dan_rafdb.py', '--finetune', 'x.pth',
                 str(folder))
    merge(*arguments)
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.endswith(f'dan-mm align {folder} ALIGNED --like x.pth')
    (folder / 'alignment.json').write_text('{"size": 48, "margin": 0.1}')
    merge(*arguments)
    assert capsys.readouterr().err == ''


def test_finetuning_refuses(tmp_path):
    config = f'{ROOT}/configs/dan_rafdb.py'
    with pytest.raises(SystemExit, match='--finetune: .*no folder .*nowhere'):
        merge(config, '--finetune', 'x.pth', str(tmp_path / 'nowhere'))
    folder = own_folder(tmp_path / 'mine')
    cfg = merge(config, '--finetune', 'x.pth', str(folder))
    # Weights to start from are those of the checkpoint, not of the recipe.
    assert cfg.model.backbone.init_cfg is None and cfg.load_from == 'x.pth'
    assert cfg.work_dir == './work_dirs/dan_rafdb_mine'
    # 31 images: a batch of 30 would leave one.
    batch = 'train_dataloader.batch_size=%d'
    for size, drops in (30, True), (10, True), (8, False), (31, False):
        cfg = merge(config, '--finetune', 'x.pth', str(folder),
                    '--cfg-options', batch % size)
        assert cfg.train_dataloader.get('drop_last', False) == drops
    (tmp_path / 'parts').mkdir()
    folder.rename(tmp_path / 'parts' / 'train')
    (tmp_path / 'parts' / 'val' / 'glum').mkdir(parents=True)
    with pytest.raises(SystemExit, match="--finetune: .*'glum'"):
        merge(config, '--finetune', 'x.pth', str(tmp_path / 'parts'))
    assert [metric.type for metric in cfg.val_evaluator
            ] == ['Accuracy', 'BalancedAccuracy']


@pytest.mark.parametrize('method', ['dan', 'resnet18'])
def test_a_wrong_number_of_classes_is_refused(ferplus_root, tmp_path, method):
    wrong = runner(ferplus_root, tmp_path, method, model__head__num_classes=7)
    with pytest.raises(ValueError, match='num_classes=7, .* has 8 classes'):
        wrong.train()


def test_a_batch_of_one_is_refused(ferplus_root, tmp_path):
    one = runner(ferplus_root, tmp_path, train_dataloader__batch_size=1)
    with pytest.raises(ValueError, match='training batch of 1.*drop_last'):
        one.train()


def test_a_broken_image_is_named(ferplus_root, tmp_path):
    root = shutil.copytree(ferplus_root, tmp_path / 'ferplus')
    for path in (root / 'FER2013Train').glob('*.png'):
        path.write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(ValueError, match='fer[0-9]+.png cannot be decoded'):
        runner(root, tmp_path / 'work').train()


@pytest.mark.parametrize('name, message', [
    ('dan_rafdb', 'github.com/yaoing/DAN.*dan_to_mmpretrain.*resnet18_8xb32'),
    ('dan-dlibresnet_ferplus', 'dlib_to_mmpretrain.py FACES'),
    ('dan_synthface', 'configs/resnet18_synthface.py'),
    ('dan-augmented_ferplus', 'Train it first: .*configs/dan_ferplus.py'),
    ('retinaface/retinaface_mobilenet0.25_widerface', 'retinaface_to_mmdet'),
])
def test_weights_to_start_from_are_explained(name, message):
    """By the config that names them, and no others."""
    cfg = Config.fromfile(f'{ROOT}/configs/{name}.py')
    with pytest.raises(SystemExit, match=message):
        check_start(cfg)
    [path] = cfg.checkpoint_hints
    os.makedirs(osp.dirname(path))
    open(path, 'w').close()
    check_start(cfg)
    os.remove(path)
    if cfg.get('load_from'):
        cfg.load_from = f'other/{path}'
    else:
        cfg.model.backbone.init_cfg.checkpoint = f'other/{path}'
    check_start(cfg)
