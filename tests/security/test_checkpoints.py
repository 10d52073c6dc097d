# Copyright (c) dan_mm contributors. All rights reserved.
"""Checkpoints of strangers, and broken ones: each is refused with a sentence,
and none names a file that is written or deleted."""
import collections
import copy
import os
import runpy
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, load_state_dict
from tiny_training import config

from dan_mm import cli
from dan_mm.cli import test as test_cli
from dan_mm.cli import train as train_cli
from dan_mm.engine.checkpoint_hook import AtomicLocalBackend
from dan_mm.engine.training_state import check_training_state
from dan_mm.errors import CheckpointLoadError

CONVERTERS = f'{ROOT}/tools/model_converters'
WRONG = dict(
    none=None,
    number=5,
    nan=float('nan'),
    text='../x',
    list=['x'],
    dict=dict(x=1),
    tensor=torch.zeros(2))
WEIGHT = 'head.fc.weight'


@pytest.fixture(scope='module')
def trained(ferplus_root, tmp_path_factory):
    """A config file, its work folder after an epoch, and the runner."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('trained')
    cfg = config(
        ferplus_root,
        folder / 'work',
        train_cfg__max_epochs=1,
        default_hooks__checkpoint__max_keep_ckpts=2)
    for phase in 'train', 'val', 'test':
        cfg[f'{phase}_dataloader'].dataset.indices = 8
    cfg.dump(folder / 'tiny.py')
    runner = Runner.from_cfg(cfg)
    runner.train()
    torch.set_num_threads(number)
    return folder / 'tiny.py', folder / 'work', runner


@pytest.fixture
def checkpoint(trained):
    """The content of the checkpoint to resume from."""
    return torch.load(trained[1] / 'epoch_1.pth', weights_only=False)


def save(checkpoint, tmp_path):
    path = str(tmp_path / 'checkpoint.pth')
    torch.save(checkpoint, path)
    return path


def load(checkpoint, tmp_path):
    return CheckpointLoader.load_checkpoint(
        save(checkpoint, tmp_path), map_location='cpu')


def put(content, place, value):
    *path, last = place.split('/')
    for key in path:
        content = content[int(key) if key.isdigit() else key]
    content[int(last) if last.isdigit() else last] = value


def lines(error):
    return str(error.value).count('\n') + 1


@pytest.mark.parametrize('value', WRONG.values(), ids=WRONG)
@pytest.mark.parametrize('place', ['state_dict', 'meta', 'meta/dataset_meta'])
def test_parts_of_other_types(checkpoint, tmp_path, place, value):
    put(checkpoint, place, value)
    if place != 'state_dict' and (value is None or value == WRONG['dict']):
        assert load(checkpoint, tmp_path)['state_dict']
        return
    with pytest.raises(
            CheckpointLoadError, match='checkpoint.pth.*expected') as error:
        load(checkpoint, tmp_path)
    assert lines(error) == 1


@pytest.mark.parametrize('classes', [5, 'abc', [5], dict(a=1)])
def test_classes_of_other_types(checkpoint, tmp_path, classes):
    put(checkpoint, 'meta/dataset_meta/classes', classes)
    with pytest.raises(CheckpointLoadError, match='names of the .classes'):
        load(checkpoint, tmp_path)


class Shadowed:
    """A dictionary with attributes that hide its methods."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        names = dict.fromkeys(('copy', 'get', 'items', 'keys', 'pop'), 'x')
        return (collections.OrderedDict, (), names, None,
                iter(self.content.items()))


@pytest.mark.parametrize('versions', [
    'x', {
        '': 'x'
    }, {
        '': dict(version='x')
    }, {
        'head': dict(version=1, assign_to_params_buffers=True)
    }
])
def test_attributes_of_parts(trained, checkpoint, tmp_path, versions):
    """What hides methods of a dictionary, or what modules read, is left
    out."""
    whole = checkpoint['state_dict']
    whole._metadata = versions
    for content in (checkpoint, {
            **checkpoint, 'state_dict': Shadowed(whole)
    },
                    Shadowed({
                        key:
                        Shadowed(value) if isinstance(value, dict) else value
                        for key, value in checkpoint.items()
                    })):
        loaded = load(content, tmp_path)
        model = trained[2].model
        before = dict(model.named_parameters())
        load_state_dict(model, loaded['state_dict'], strict=True)
        assert all(param is before[name]
                   for name, param in model.named_parameters())
        check_training_state(trained[2], loaded)


# No weight, or one of which the file has less than it says
TENSORS = dict(
    text=lambda weight: 'x',
    meta=lambda weight: weight.to('meta'),
    sparse=lambda weight: weight.to_sparse(),
    csr=lambda weight: weight.to_sparse_csr(),
    complex=lambda weight: weight.to(torch.complex64),
    quantized=lambda weight: torch.quantize_per_tensor(weight, .1, 0, torch.
                                                       qint8),
    float8=lambda weight: weight.to(torch.float8_e4m3fn),
    expanded=lambda weight: torch.zeros(1).expand(2**40),
    nan=lambda weight: weight * float('nan'),
    infinity=lambda weight: weight - float('inf'))


@pytest.mark.parametrize('part', ['state_dict', 'ema_state_dict'])
@pytest.mark.parametrize('change', TENSORS.values(), ids=TENSORS)
def test_strange_weights(checkpoint, tmp_path, change, part):
    """In the weights and in their moving average, of which a test of EMA
    takes either."""
    prefix = ''
    if part != 'state_dict':
        prefix = 'module.'
        checkpoint[part] = {
            f'{prefix}{key}': value
            for key, value in checkpoint['state_dict'].items()
        }
        assert load(checkpoint, tmp_path)
    weights = checkpoint[part]
    weights[prefix + WEIGHT] = change(weights[prefix + WEIGHT])
    with pytest.raises(
            CheckpointLoadError, match=f'{WEIGHT}.*expected') as error:
        load(checkpoint, tmp_path)
    assert lines(error) == 1


class Code:

    def __reduce__(self):
        return os.mkdir, ('ran', )


def write_files(folder, whole):
    """Files that are no checkpoints."""
    content = whole.read_bytes()
    (folder / 'folder.pth').mkdir()
    os.mkfifo(folder / 'pipe.pth')
    for name, part in dict(
            cut=content[:len(content) // 2],
            shorter=content[:-1],
            empty=b'',
            text=b'hello',
            zeros=bytes(10000),
            nested=b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
            numpy=b'\x93NUMPY\x01\x00').items():
        (folder / f'{name}.pth').write_bytes(part)
    with zipfile.ZipFile(folder / 'zip.pth', 'w') as archive:
        archive.writestr('a.txt', 'x')
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(
            folder / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        for item in source.infolist():
            content = source.read(item)
            archive.writestr(
                item.filename,
                bytes(10**7) if item.filename.endswith('data/0') else content)
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / 'script.pth')
    for name, value in dict(
            tensor=torch.zeros(2), array=[1], number=5, nothing={},
            code=dict(state_dict={}, extra=Code()),
            foreign=dict(model=dict(weight=torch.zeros(2))),
            original=dict(model_state_dict={})).items():  # yapf: disable
        torch.save(value, folder / f'{name}.pth')
    return sorted(folder.glob('*.pth'))


def test_files_that_are_no_checkpoints(trained, tmp_path):
    """In every command that loads one."""
    tiny, work_dir, _ = trained
    arguments = {
        'predict':
        lambda path: cli.main(['predict', '--model', path, 'x.png']),
        'test':
        lambda path: test_cli.main([str(tiny), path]),
        'resume':
        lambda path: train_cli.main(
            [str(tiny), '--work-dir', 'work', '--resume', path]),
        'load_from':
        lambda path: train_cli.main([
            str(tiny), '--work-dir', 'work', '--cfg-options',
            f'load_from={path}'
        ]),
        'pretrained':
        lambda path: train_cli.main([
            str(tiny), '--work-dir', 'work', '--cfg-options',
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={path}'
        ]),
        'publish':
        lambda path: main['publish_model']([str(tiny), path, 'new.pth']),
        'convert':
        lambda path: main['dan_to_mmpretrain']([path, 'new.pth']),
        'convert detector':
        lambda path: main['retinaface_to_mmdet']([path, 'new.pth']),
        'convert dlib':
        lambda path: main['dlib_to_mmpretrain']
        ([str(work_dir), 'new.pth', '--src', path]),
    }
    main = {
        name: runpy.run_path(f'{CONVERTERS}/{name}.py')['main']
        for name in ('publish_model', 'dan_to_mmpretrain',
                     'retinaface_to_mmdet', 'dlib_to_mmpretrain')
    }
    files = write_files(tmp_path, work_dir / 'epoch_1.pth')
    assert len(files) == 19
    for command, run in arguments.items():
        # Training makes its model first, which takes a while.
        few = command in ('resume', 'load_from', 'pretrained')
        for path in files[::5] if few else files:
            if command == 'predict':
                assert run(str(path)) == 2
                continue
            with pytest.raises(SystemExit) as error:
                run(str(path))
            assert lines(error) == 1 and 'expected' in str(
                error.value).lower(), (command, path, error.value)
    assert not os.path.exists('new.pth') and not os.path.exists('ran')


# Each is refused before an iteration.
STATES = {
    'meta/epoch': ['x', None, -1, 1.5, True, 2**60],
    'meta/iter': ['x', None, -1],
    'meta/seed': ['x', -1, 2**40, [1]],
    'optimizer':
    WRONG.values(),
    'optimizer/state':
    WRONG.values(),
    'optimizer/state/0': [5, 'x', dict(x=1)],
    'optimizer/state/0/exp_avg':
    [5, 'x', torch.zeros(1),
     torch.tensor(float('nan'))],
    'optimizer/param_groups':
    WRONG.values(),
    'optimizer/param_groups/0/lr': ['x', None, float('nan')],
    'optimizer/param_groups/0/betas': ['x', None, (1, )],
    'optimizer/param_groups/0/params': ['x', None, [1]],
    'param_schedulers':
    WRONG.values(),
    'param_schedulers/0':
    WRONG.values(),
    'param_schedulers/0/last_step': ['x', None, 1.5, 10**30],
    'param_schedulers/0/base_values': ['x', None, [], [float('nan')]],
    'param_schedulers/0/anneal_func': ['x', None, HistoryBuffer.mean],
    'param_schedulers/0/param_name': ['params', 5],
    'param_schedulers/0/step': [5],
}


@pytest.mark.parametrize('place', STATES)
def test_states_to_resume_from(trained, checkpoint, tmp_path, place):
    runner = trained[2]
    check_training_state(runner, load(checkpoint, tmp_path))
    for value in STATES[place]:
        broken = load(checkpoint, tmp_path)
        put(broken, place, value)
        with pytest.raises(CheckpointLoadError, match='expected|another'):
            check_training_state(runner, broken)


@pytest.mark.parametrize('place', [
    'meta/epoch', 'meta/iter', 'message_hub', 'optimizer', 'optimizer/state',
    'optimizer/state/0/exp_avg', 'optimizer/param_groups', 'param_schedulers',
    'param_schedulers/0/last_step'
])
def test_states_that_are_missing(trained, checkpoint, tmp_path, place):
    *path, last = place.split('/')
    holder = checkpoint
    for key in path:
        holder = holder[int(key) if key.isdigit() else key]
    del holder[last]
    with pytest.raises(CheckpointLoadError, match='expected|another'):
        check_training_state(trained[2], load(checkpoint, tmp_path))


def resume(trained, checkpoint, work_dir, *options):
    os.makedirs(work_dir, exist_ok=True)
    path = os.path.join(work_dir, 'epoch_1.pth')
    torch.save(checkpoint, path)
    train_cli.main([
        str(trained[0]), '--work-dir',
        str(work_dir), '--resume', '--cfg-options', 'train_cfg.max_epochs=3',
        *options
    ])


def test_only_numbers_are_taken_over(checkpoint, tmp_path):
    """Of what MMEngine notes in training, whatever uses it next."""
    hub = checkpoint['message_hub']
    broken = HistoryBuffer([1.], [1])
    broken.__dict__.update(_log_history='x')
    hub['log_scalars'].update({'train/x': broken, 'train/y': 'x'})
    hub['runtime_info'].update(
        best_score=np.float64(70),
        last_ckpt='/etc/passwd',
        best_ckpt='/home/best_epoch_7.pth',
        loop_stage='../x',
        keep_ckpt_ids=['/../../x'],
        cfg='import os',
        experiment_name='/x',
        eta=float('nan'),
        other=torch.zeros(3).to('meta'))
    hub['resumed_keys'] = 'x'
    hub = load(checkpoint, tmp_path)['message_hub']
    infos = hub['runtime_info']
    assert all(isinstance(value, (int, float)) for value in infos.values())
    assert infos['best_score'] == 70 and infos['best_step'] == 7
    assert set(infos) <= {
        'best_score', 'best_step', 'epoch', 'iter', 'max_epochs', 'max_iters',
        'seed', 'validated_epoch'
    }
    assert 'train/loss' in hub['log_scalars']
    assert not {'train/x', 'train/y'} & set(hub['log_scalars'])
    assert set(hub['resumed_keys']) == {*infos, *hub['log_scalars']}


@pytest.mark.parametrize(
    'ids', [
        ['/../../victim'] * 4,
        [f'{"../" * 20}tmp'] * 4,
        'abcd',
        [1, 1.5, True, None],
        [[1]] * 4,
    ],
    ids=range(5))
def test_a_checkpoint_deletes_nothing(trained, checkpoint, tmp_path, ids):
    """By the numbers of checkpoints to keep and the path of the best one."""
    victim = tmp_path / 'victim.pth'
    victim.write_text('x')
    other = tmp_path / 'best_accuracy_top1_epoch_1.pth'
    other.write_text('x')
    (tmp_path / 'epoch_0').mkdir()
    infos = checkpoint['message_hub']['runtime_info']
    infos.update(keep_ckpt_ids=ids, best_ckpt=str(other), best_score=-1.)
    work_dir = tmp_path / 'epoch_0' / 'work'
    work_dir.mkdir()
    link = work_dir / 'best_accuracy_top1_epoch_1.pth'
    link.symlink_to(victim)
    (work_dir / 'epoch_0.pth').mkdir()
    resume(trained, checkpoint, work_dir)
    assert victim.read_text() == other.read_text() == 'x'
    assert link.is_symlink() and (work_dir / 'epoch_0.pth').is_dir()
    assert (work_dir / 'epoch_3.pth').is_file()


def test_a_checkpoint_from_elsewhere_deletes_nothing(trained, checkpoint,
                                                     tmp_path):
    infos = checkpoint['message_hub']['runtime_info']
    infos.update(
        keep_ckpt_ids=[7, 8, 9], best_score=-1., best_ckpt='best_epoch_9.pth')
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    names = [f'epoch_{number}.pth' for number in (7, 8, 9)]
    names += ['best_accuracy_top1_epoch_9.pth']
    for name in names:
        (work_dir / name).write_text('x')
    path = save(checkpoint, tmp_path)
    train_cli.main([
        str(trained[0]), '--work-dir',
        str(work_dir), '--resume', path, '--cfg-options',
        'train_cfg.max_epochs=2'
    ])
    assert all((work_dir / name).read_text() == 'x' for name in names)


def test_writing_follows_no_link(tmp_path):
    victim = tmp_path / 'victim'
    victim.write_text('x')
    (tmp_path / 'epoch_1.pth.partial').symlink_to(victim)
    AtomicLocalBackend().put(b'y', str(tmp_path / 'epoch_1.pth'))
    assert victim.read_text() == 'x'
    assert (tmp_path / 'epoch_1.pth').read_text() == 'y'


@pytest.mark.parametrize(
    'change', [
        lambda key, value: value * float('nan') if 'running' in key else value,
        lambda key, value: value.fill_(-1) if 'running_var' in key else value
    ],
    ids=['nan', 'negative variance'])
def test_no_accuracy_of_scores_that_are_no_numbers(trained, checkpoint,
                                                   tmp_path, change):
    checkpoint['state_dict'] = {
        key: change(key, value)
        for key, value in checkpoint['state_dict'].items()
    }
    published = dict(
        state_dict=checkpoint['state_dict'], meta=checkpoint['meta'])
    for content in checkpoint, published:
        path = save(content, tmp_path)
        with pytest.raises(SystemExit, match='not finite.*expected'):
            test_cli.main([str(trained[0]), path])
    with pytest.raises(SystemExit, match='not finite.*expected'):
        train_cli.main([
            str(trained[0]), '--work-dir',
            str(tmp_path / 'work'), '--cfg-options', f'load_from={path}'
        ])


@pytest.mark.parametrize('change, message', [
    (lambda weights: weights.update({
        'backbone.conv1.weight': torch.zeros(3, 3, 3, 3)
    }), 'conv1.weight'),
    (lambda weights: [
        weights.pop(key)
        for key in list(weights) if not key.startswith('backbone.conv1')
    ], 'of its 1 weights'),
    (lambda weights: [
        weights.pop(key)
        for key in list(weights) if not key.startswith('head.')
    ], 'none'),
], ids=['shape', 'one', 'none'])  # yapf: disable
def test_weights_to_start_from(trained, checkpoint, tmp_path, change, message):
    """By ``Pretrained`` and by ``load_from``."""
    path = save(checkpoint, tmp_path)
    start = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={path}',
        'model.backbone.init_cfg.prefix=backbone'
    ]
    command = [
        str(trained[0]), '--work-dir',
        str(tmp_path / 'work'), '--cfg-options'
    ]
    train_cli.main([*command, *start])
    change(checkpoint['state_dict'])
    save(checkpoint, tmp_path)
    with pytest.raises(SystemExit, match=f'{message}.*init_cfg'):
        train_cli.main([*command, *start])
    if message != 'none':
        with pytest.raises(SystemExit, match=message):
            train_cli.main([*command, f'load_from={path}'])


def test_the_states_of_the_runner_are_left_alone(trained, checkpoint,
                                                 tmp_path):
    runner = trained[2]
    before = copy.deepcopy(runner.model.state_dict())
    check_training_state(runner, load(checkpoint, tmp_path))
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(param.grad is None or param.grad.any()
               for param in runner.model.head.fc.parameters())
