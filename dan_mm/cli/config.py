# Copyright (c) dan_mm contributors. All rights reserved.
"""Options that several commands have."""
import argparse
import errno
import glob
import os
import os.path as osp
import re
import sys
import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Iterator

from .output import drop_output

if TYPE_CHECKING:
    from mmengine.config import Config


class DictAction(argparse.Action):
    """:class:`mmengine.config.DictAction`, which takes seconds to import,
    imported when it is used."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from mmengine.config import DictAction
        DictAction([], self.dest)(parser, namespace, values, option_string)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config with key=value pairs. A list is '
        'key="[a,b]" or key=a,b; nested lists and tuples are allowed: '
        'key="[(a,b),(c,d)]", with the quotation marks and without blanks')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes --local-rank, older ones --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the classifier."""
    parser.add_argument(
        '--model',
        help='a checkpoint, a work folder, a folder of `dan-mm export`, or a '
        'name of the model index')
    parser.add_argument(
        '--config', help='the config of the model, which is code and runs')
    parser.add_argument(
        '--precision',
        choices=['float32', 'int8'],
        default='float32',
        help='of a folder of `dan-mm export` (default: %(default)s)')


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the face detector."""
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.5,
        help='the score from which on a face counts (default: %(default)s)')
    parser.add_argument(
        '--detector-config', help='the config of another detector')
    parser.add_argument(
        '--detector-checkpoint', help='the weights of the detector')
    parser.add_argument('--device', help='(default: a GPU, or the CPU)')
    parser.add_argument(
        '--batch-size',
        type=int,
        default=8,
        help='images under way at once (default: %(default)s)')


def set_loader_defaults(loader: dict) -> None:
    """Fill in settings of a dataloader, as MMPretrain's tools do."""
    from mmengine.device import get_device

    # Pinned memory is for the copy to an accelerator.
    loader.setdefault('pin_memory', get_device() != 'cpu')
    loader.setdefault('collate_fn', dict(type='default_collate'))


def find_config(name: str) -> str:
    """Find a config."""
    if osp.isfile(name):
        return name
    from dan_mm.apis.model_index import find_configs
    configs = {
        osp.splitext(osp.basename(path))[0]: path
        for path in glob.glob(
            osp.join(find_configs(), '**', '*.py'), recursive=True)
        if '_base_' not in path
    }
    if name not in configs:
        close = get_close_matches(
            osp.splitext(osp.basename(name))[0], configs, n=3)
        raise SystemExit(
            f'Found no config {name}, expected a path or a name, such as '
            f'{" or ".join(close or ["dan_rafdb"])}.')
    return configs[name]


def check_names(cfg: 'Config') -> None:
    """Refuse names of files and folders that would be code in a config.

    MMEngine replaces ``{{...}}`` in the text of a config that it loads, also
    of the copy in the work folder.
    """
    found = re.search(r'\{\{.{,60}', repr(cfg))
    if found:
        raise SystemExit(
            f'Found {found[0]!r} in the settings, expected no `{{{{`, which '
            'MMEngine replaces. Rename the file or folder.')


def check_data(cfg: 'Config', *phases: str) -> None:
    """Look for the data before a runner is built, which logs its settings and
    environment first."""
    from mmengine.registry import DATASETS, DefaultScope

    # One process of each machine draws synthetic faces.
    if int(os.environ.get('LOCAL_RANK', 0)):
        return
    scope = cfg.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope), \
            warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the runner gives them again
        for phase in phases:
            loader = cfg.get(f'{phase}_dataloader')
            try:
                loader and DATASETS.build(loader.dataset)
            except FileNotFoundError as error:
                raise SystemExit(str(error))


def check_start(cfg: 'Config') -> None:
    """Look for the checkpoint that training starts from. The config's
    ``checkpoint_hints`` say what to do where one is missing."""
    init = (cfg.model.get('backbone') or {}).get('init_cfg') or []
    init = [init] if isinstance(init, dict) else init
    starts = [cfg.get('load_from'), *(part.get('checkpoint') for part in init)]
    for path, hint in cfg.get('checkpoint_hints', {}).items():
        if path in starts and not osp.isfile(path):
            raise SystemExit(f'Found no checkpoint {path}. {hint}')


@contextmanager
def refuse_checkpoints() -> Iterator[None]:
    """End the process with one sentence where a checkpoint can't be used, or
    the disk is full.

    Other errors come from the config, which is code of the user, who needs to
    see where it failed.
    """
    from dan_mm.errors import CheckpointLoadError
    try:
        yield
    except CheckpointLoadError as error:
        raise SystemExit(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(error.strerror, file=sys.stderr)
        drop_output()
        raise SystemExit(2)
