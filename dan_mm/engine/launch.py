# Copyright (c) dan_mm contributors. All rights reserved.
import datetime
import gc
import os
import subprocess

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device


def init_cpu_processes(cfg: Config) -> None:
    """Join the processes of a launch on machines without an accelerator.

    :func:`mmengine.dist.init_dist` asks for a GPU even with the backend gloo.
    With an accelerator, or without a launcher, this does nothing and MMEngine
    joins them.

    Args:
        cfg (Config): The config, with ``launcher`` set. Its
            ``model_wrapper_cfg`` is set, for weights that are on no GPU.

    Raises:
        ValueError: If the launcher is none that works here.
        KeyError: If the launcher did not set its environment variables.
    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher == 'slurm':
        os.environ['RANK'] = os.environ['SLURM_PROCID']
        os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
        os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
        os.environ.setdefault('MASTER_PORT', '29500')
        if 'MASTER_ADDR' not in os.environ:
            hosts = subprocess.check_output(
                ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
                text=True)
            os.environ['MASTER_ADDR'] = hosts.split()[0]
    elif cfg.launcher != 'pytorch':
        raise ValueError(
            f"Got launcher='{cfg.launcher}' on a machine without an "
            "accelerator, expected 'pytorch' or 'slurm'. Use "
            '`tools/dist_train.sh`.')
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    dist.init_process_group(
        'gloo', timeout=datetime.timedelta(seconds=timeout))
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        find_unused_parameters=cfg.get('find_unused_parameters', False),
        broadcast_buffers=False,
        device_ids=None)


def leave_cpu_processes() -> None:
    """Leave the processes that :func:`init_cpu_processes` joined, when all
    have come as far.

    The runner and its model must be out of reach before: DDP refers to threads
    of gloo, which abort a process now and then if the interpreter takes them
    down.
    """
    if dist.is_initialized() and get_device() == 'cpu':
        dist.barrier()
        # Runner, loops and hooks refer to each other.
        gc.collect()
        dist.destroy_process_group()
