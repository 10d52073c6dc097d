# Copyright (c) dan_mm contributors. All rights reserved.
"""Train plain ResNet-18 and DAN on synthetic faces, and show the results."""
import argparse
import os.path as osp
import subprocess
import sys

import matplotlib
import mmengine
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.evaluation import ConfusionMatrix

import dan_mm
from dan_mm.engine import CheckpointFitHook

matplotlib.use('Agg')

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
METHODS = dict(resnet18='plain ResNet-18', dan='DAN, 4 attention heads')


def run(*command: str) -> None:
    process = subprocess.run([sys.executable, *command], cwd=ROOT)
    if process.returncode:
        raise SystemExit(process.returncode)


def test(config: str, checkpoint: str, out: str) -> dict:
    """Test a model on the persons that it was not trained on."""
    cfg = Config.fromfile(config)
    cfg.load_from = checkpoint
    cfg.work_dir = osp.join(out, 'logs')
    cfg.test_evaluator.append(dict(type='ConfusionMatrix'))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(CheckpointFitHook())
    metrics = runner.test()
    metrics['classes'] = runner.test_loop.dataloader.dataset.metainfo[
        'classes']
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        default='work_dirs/demo',
        help='the folder to write images and results to '
        '(default: %(default)s)')
    args = parser.parse_args()
    # Whatever the config imports
    dan_mm.register_all_modules(init_default_scope=False)

    results = {}
    for method in METHODS:
        config = f'configs/{method}_synthface.py'
        work_dir = f'work_dirs/{method}_synthface'
        run('tools/train.py', config, '--resume', '--work-dir', work_dir)
        epochs = Config.fromfile(osp.join(ROOT, config)).train_cfg.max_epochs
        checkpoint = find_latest_checkpoint(osp.join(ROOT, work_dir))
        if osp.basename(checkpoint or '') != f'epoch_{epochs}.pth':
            raise SystemExit(
                f'Found the checkpoint {checkpoint} in {work_dir}, expected '
                f'epoch_{epochs}.pth: something else was trained there. '
                f'Remove {work_dir} and run the demo again.')
        metrics = test(osp.join(ROOT, config), checkpoint, args.out)
        matrix = metrics.pop('confusion_matrix/result')
        figure = ConfusionMatrix.plot(
            matrix,
            include_values=True,
            cmap='Blues',
            classes=metrics.pop('classes'),
            show=False)
        figure.savefig(
            osp.join(args.out, f'confusion_matrix_{method}.png'),
            dpi=80,
            bbox_inches='tight')
        results[method] = dict(metrics, confusion_matrix=matrix.tolist())
    run('tools/visualization/attention_maps.py', config, checkpoint, '--out',
        osp.join(osp.abspath(args.out), 'attention_maps.png'))
    mmengine.dump(results, osp.join(args.out, 'results.json'), indent=2)

    print(
        '\nAccuracy on synthetic faces of identities not seen in training (8 '
        'classes;\nDAN starts from that ResNet-18 and trains 2 epochs more):')
    for method, name in METHODS.items():
        print(f'  {name:24}{results[method]["accuracy/top1"]:6.1f} %')
    print(f'The confusion matrices, what each head looks at '
          f'(attention_maps.png) and results.json are in '
          f'{osp.abspath(args.out)}')


if __name__ == '__main__':
    main()
