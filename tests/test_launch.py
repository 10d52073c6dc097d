# Copyright (c) dan_mm contributors. All rights reserved.
"""Several processes, on the CPU: the losses, their gradients and metrics are
those of one process."""
import json
import os
import os.path as osp
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from dan_mm import cli
from dan_mm.engine import init_cpu_processes

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason='processes on the CPU')

BATCH = 8
DAN = f'{ROOT}/configs/dan_ferplus.py'


def environment(**variables):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    return dict(
        os.environ,
        PATH=f'{osp.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}',
        PORT=port,
        MASTER_PORT=port,
        PYTHONPATH=ROOT,
        OMP_NUM_THREADS='1',
        **variables)


def start(command, **variables):
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)


def run(*command, **variables):
    process = start(command, **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


# The losses and gradients of a share of a batch, averaged over processes.
DRIVER = '''
import sys
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
import dan_mm
from dan_mm.engine import init_cpu_processes, leave_cpu_processes
sys.path.insert(0, sys.argv[1])
from test_launch import BATCH, batch, build

cfg = Config(dict(launcher='pytorch'))
init_cpu_processes(cfg)
dan_mm.register_all_modules()
rank, size = dist.get_rank(), dist.get_world_size()
share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
results = {}
for name in sys.argv[3:]:
    model = MMDistributedDataParallel(
        build(name), device_ids=None, broadcast_buffers=False)
    inputs, samples = batch()
    losses = model(inputs[share], samples[share], mode='loss')
    sum(losses.values()).backward()
    for value in losses.values():
        dist.all_reduce(value.detach())
    results[name] = dict(
        losses={key: value.item() / size for key, value in losses.items()},
        grads={key: value.grad for key, value
               in model.module.named_parameters()})
if rank == 0:
    torch.save(results, sys.argv[2])
del model, losses
leave_cpu_processes()
'''

HEADS = dict(
    # Terms of means over the batch.
    means=dict(loss_partition=dict(type='PartitionLoss', form='paper')),
    # The partition loss as in the authors' code, alone: the logarithm of a
    # mean.
    original=dict(loss_affinity=None),
    # A sum over the batch, alone.
    sum=dict(
        loss_affinity=dict(type='AffinityLoss', form='paper'),
        loss_partition=None),
)


def build(name):
    """A small DAN, in double precision, with BatchNorm in evaluation."""
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py').model
    cfg.backbone.update(base_channels=8, stem_channels=8)
    cfg.neck.in_channels = cfg.head.in_channels = 64
    cfg.head.update(HEADS[name])
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    # Not the losses of a fresh model, whose heads are nearly the same.
    for parameter in model.neck.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(
        BATCH, 3, 64, 64, generator=generator, dtype=torch.double)
    samples = [DataSample().set_gt_label(i * 3 % 8) for i in range(BATCH)]
    return inputs, samples


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp('two')
    (path / 'driver.py').write_text(DRIVER)
    run(sys.executable, '-m', 'torch.distributed.run', '--standalone',
        '--nproc_per_node=2', path / 'driver.py', f'{ROOT}/tests',
        path / 'results.pth', *HEADS)
    return torch.load(path / 'results.pth')


def one(name, share=slice(None)):
    model = build(name)
    inputs, samples = batch()
    losses = model(inputs[share], samples[share], mode='loss')
    sum(losses.values()).backward()
    return {
        key: value.item()
        for key, value in losses.items()
    }, {
        key: value.grad
        for key, value in model.named_parameters()
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow
def test_means_are_those_of_one_process(two):
    losses, grads = one('means')
    assert losses.keys() == {'loss_cls', 'loss_affinity', 'loss_partition'}
    for key, value in losses.items():
        assert two['means']['losses'][key] == pytest.approx(value, rel=1e-5)
    for key, grad in grads.items():
        assert grad.norm() > 0, key
        assert relative(two['means']['grads'][key], grad) < 1e-5, key


@pytest.mark.slow
def test_the_original_partition_loss_is_bounded(two):
    """Of means over the shares: the average over the processes is not below
    that of one process, and not above the largest of a process."""
    whole, grads = one('original')
    shares = [
        one('original', share)
        for share in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
    ]
    values = [losses['loss_partition'] for losses, _ in shares]
    assert abs(values[0] - values[1]) > 1e-6
    found = two['original']['losses']['loss_partition']
    assert found == pytest.approx(sum(values) / 2, rel=1e-9)
    assert whole['loss_partition'] < found < max(values)
    # The gradient is the mean of those of the processes.
    for key, grad in two['original']['grads'].items():
        expected = (shares[0][1][key] + shares[1][1][key]) / 2
        assert relative(grad, expected) < 1e-9
        assert relative(grad, grads[key]) < 0.05, key


@pytest.mark.slow
def test_a_sum_is_divided_by_the_processes(two):
    losses, _ = one('sum')
    expected = losses['loss_affinity'] / 2
    found = two['sum']['losses']['loss_affinity']
    assert found == pytest.approx(expected, rel=1e-9)
    # Of the centres, which no other loss moves.
    _, grads = one('sum')
    key = 'head.loss_affinity.centers'
    assert relative(two['sum']['grads'][key], grads[key] / 2) < 1e-9


def options(root):
    """A small training of 15 images: the last of two processes has one
    less."""
    values = {
        'randomness.seed': 0,
        'train_cfg.max_epochs': 1,
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': 64,
        'model.head.in_channels': 64,
    }
    for phase in 'train', 'val', 'test':
        values.update({
            f'{phase}_dataloader.num_workers': 0,
            f'{phase}_dataloader.persistent_workers': False,
            f'{phase}_dataloader.batch_size': 4,
            f'{phase}_dataloader.dataset.data_root': root,
            f'{phase}_dataloader.dataset.indices': 15,
        })
    return [f'{key}={value}' for key, value in values.items()]


# A hook that keeps what each process ends with.
KEEP = '''
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

@HOOKS.register_module()
class Keep(Hook):
    priority = 'LOWEST'

    def after_val_epoch(self, runner, metrics):
        self.metrics = dict(metrics)

    def after_train(self, runner):
        torch.save(dict(weights=runner.model.module.state_dict(),
                        metrics=self.metrics),
                   f'{runner.work_dir}/rank{get_rank()}.pth')
'''


@pytest.mark.slow
def test_train_and_test(ferplus_root, tmp_path):
    """Training on two nodes of one process each, then the test in two
    processes and in one."""
    (tmp_path / 'keep.py').write_text(KEEP)
    config = tmp_path / 'dan.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/dan_ferplus.py'\n"
        "custom_imports = dict(imports=['dan_mm.models', 'keep'])\n"
        'custom_hooks = _base_.custom_hooks + [dict(type="Keep")]\n')
    shared = environment(NNODES='2')
    shared['PYTHONPATH'] = f'{ROOT}{os.pathsep}{tmp_path}'
    nodes = [
        subprocess.Popen([
            f'{ROOT}/tools/dist_train.sh',
            str(config), '1', '--work-dir',
            str(tmp_path), '--cfg-options', *options(ferplus_root)
        ],
                         env=dict(shared, NODE_RANK=str(rank)),
                         text=True,
                         stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT) for rank in range(2)
    ]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], '\n'.join(outputs)
    assert '[2/2]' in outputs[0]  # batches of 4 of 8 images

    ranks = [
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=False)
        for rank in range(2)
    ]
    saved_path = tmp_path / 'epoch_1.pth'
    saved = torch.load(saved_path, weights_only=False)
    centers = saved['state_dict']['head.loss_affinity.centers']
    fresh = build('means').head.loss_affinity.centers
    assert centers.shape == fresh.shape
    for state in ranks:
        # The statistics of BatchNorm, too.
        for key, value in saved['state_dict'].items():
            assert torch.equal(value, state['weights'][key]), key
    assert ranks[0]['metrics'] == ranks[1]['metrics']

    metrics = {}
    for name in 'two', 'one':
        out = tmp_path / f'{name}.json'
        arguments = [
            '--work-dir', tmp_path / name, '--out', out, '--out-item',
            'metrics', '--cfg-options', *options(ferplus_root)
        ]
        if name == 'two':
            run(f'{ROOT}/tools/dist_test.sh', DAN, saved_path, 2, *arguments)
        else:
            cli.main(['test', *map(str, [DAN, saved_path, *arguments])])
        metrics[name] = json.loads(out.read_text())
    # Sums of floating-point numbers in another order
    assert metrics['one'] == pytest.approx(metrics['two'], abs=1e-6)
    assert metrics['one'].keys() == {
        'accuracy/top1', 'accuracy/balanced', 'calibration/ece'
    }


SRUN = '''#!/usr/bin/env bash
# Stands in for Slurm's: starts the tasks here.
echo "srun $*" > "$STUB_OUT"
while [[ $1 == -* ]]; do
    case $1 in
        --ntasks=*) tasks=${1#*=} ;;
        -p) shift ;;
    esac
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST=here
[[ $* == *train.py* ]] && exit
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || exit 1; done
'''


@pytest.mark.slow
def test_slurm_scripts(ferplus_root, tmp_path):
    """With a stub of srun, which starts the test alone."""
    stubs = tmp_path / 'bin'
    stubs.mkdir()
    for name, text in (('srun', SRUN), ('scontrol',
                                        '#!/bin/sh\necho 127.0.0.1\n')):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    variables = dict(
        environment(),
        GPUS='2',
        SRUN_ARGS='--exclusive --time=1',
        STUB_OUT=str(tmp_path / 'srun.txt'))
    variables['PATH'] = os.pathsep.join([str(stubs), variables['PATH']])
    torch.save(
        dict(state_dict=build('means').float().state_dict()),
        tmp_path / 'epoch_1.pth')
    for tool, arguments in (('train', ['--no-validate']),
                            ('test', [str(tmp_path / 'epoch_1.pth')])):
        process = subprocess.run([
            f'{ROOT}/tools/slurm_{tool}.sh', 'gpu', 'my job',
            f'{ROOT}/configs/dan_ferplus.py', *arguments, '--work-dir',
            str(tmp_path), '--cfg-options', *options(ferplus_root)
        ],
                                 env=variables,
                                 text=True,
                                 stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT,
                                 timeout=300)
        assert process.returncode == 0, process.stdout
        srun = (tmp_path / 'srun.txt').read_text()
        assert ('srun -p gpu --job-name=my job --gres=gpu:2 --ntasks=2 '
                '--ntasks-per-node=2 --cpus-per-task=5 --kill-on-bad-exit=1 '
                '--exclusive --time=1 python -u') in srun
    assert process.stdout.count('accuracy/top1: ') == 1  # of the first process


@pytest.mark.parametrize('name, arguments', [('dist_train', 1),
                                             ('dist_test', 2),
                                             ('slurm_train', 2),
                                             ('slurm_test', 3)])
def test_scripts_say_what_they_need(name, arguments):
    process = subprocess.run([f'{ROOT}/tools/{name}.sh', *'abcd'[:arguments]],
                             text=True,
                             stderr=subprocess.PIPE)
    assert process.returncode == 2
    assert 'Usage: ' in process.stderr and 'CONFIG' in process.stderr


def test_a_launcher_that_does_not_work_here():
    with pytest.raises(ValueError, match="launcher='mpi'.*dist_train.sh"):
        init_cpu_processes(Config(dict(launcher='mpi')))
    cfg = Config(dict(launcher='none'))
    init_cpu_processes(cfg)
    assert 'model_wrapper_cfg' not in cfg
