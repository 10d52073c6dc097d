# Copyright (c) dan_mm contributors. All rights reserved.
import glob
import os
import os.path as osp
from contextlib import suppress
from typing import List

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS

from dan_mm.files import atomic_write, is_regular
from .work_folder import find_resumable

# The message in a checkpoint that says which epoch was validated.
VALIDATED = 'validated_epoch'
ATOMIC = dict(backend='atomic')


@register_backend('atomic', force=True)
class AtomicLocalBackend(LocalBackend):
    """Files on this machine with atomic writes."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes to a file, or raise OSError. A file that was there
        before is still there then."""
        try:
            # A killed training leaves a file that the next one replaces.
            with atomic_write(
                    filepath,
                    keep_partial=True) as partial, open(partial, 'xb') as file:
                file.write(obj)
        except OSError as error:
            with suppress(OSError):
                os.remove(f'{filepath}.partial')
            raise OSError(
                error.errno, f'{error.strerror}: {filepath} was not written, '
                f'expected {len(obj) / 2**20:.0f} MB of space. Earlier '
                'checkpoints are intact: free space, and train on with '
                '`--resume`') from error

    def put_text(self,
                 obj: str,
                 filepath: str,
                 encoding: str = 'utf-8') -> None:
        """Write text to a file: see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Save checkpoints such that training can resume after a crash at any
    moment, or on a full disk.

    :class:`mmengine.hooks.CheckpointHook` removes an old checkpoint, then
    writes the new one in place, then updates ``last_checkpoint``. This hook
    writes atomically, updates ``last_checkpoint``, and removes the old one
    last. Training resumes from the newest complete checkpoint of its folder,
    which may have been moved; no checkpoint names files to remove. If training
    was interrupted between a checkpoint and its validation, that is made up
    for, so that the best epoch is the same as without the interruption.

    The arguments are those of :class:`mmengine.hooks.CheckpointHook`. With
    ``backend_args`` of another storage, writes are left to that.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and self.file_client_args is None and (
                self.out_dir is None or '://' not in str(self.out_dir)):
            self.backend_args = ATOMIC
        self.replaced = {}  # paths of best checkpoints, by their metrics

    def _folder(self, runner: Runner) -> str:
        """Get the folder of the checkpoints, as the host does."""
        if self.out_dir in (None, runner.work_dir):
            return runner.work_dir
        return osp.join(
            str(self.out_dir), osp.basename(runner.work_dir.rstrip(osp.sep)))

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, unless one was given.

        Raises:
            CheckpointLoadError: If there are checkpoints, but no complete one.
        """
        if not runner._resume or runner._load_from is not None or (
                self.backend_args != ATOMIC):
            return
        path, broken = find_resumable(
            self._folder(runner), runner.work_dir, self.filename_tmpl)
        for name, why in broken.items():
            runner.logger.warning(f'Does not resume from {name}: {why}')
        runner.logger.info(
            f'Resumes from {path}, the newest complete checkpoint.' if path
            else 'Found no checkpoint to resume from: training starts.')
        runner._load_from = path

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder, and validate the epoch to resume from."""
        if self.backend_args == ATOMIC:
            self._find_own_files(runner)
        super().before_train(runner)
        loop = runner.train_loop
        if not (runner.epoch and isinstance(loop, EpochBasedTrainLoop)
                and runner.val_loop):
            return
        if runner.message_hub.runtime_info.get(VALIDATED) == runner.epoch:
            return
        due = (
            runner.epoch % loop.val_interval == 0
            or runner.epoch == loop.max_epochs)
        if due and runner.epoch >= loop.val_begin:
            # The path that the best score is noted in.
            self.last_ckpt = self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(runner.epoch))
            runner.logger.info(f'Validating the resumed epoch {runner.epoch}')
            runner.val_loop.run()

    def _find_own_files(self, runner: Runner) -> None:
        """Find the files that a resumed training goes on to replace."""
        folder, infos = self._folder(runner), runner.message_hub.runtime_info
        kept = infos.pop('keep_ckpt_ids', [])
        steps = {
            key: infos.pop(key)
            for key in list(infos) if key.startswith('best_step')
        }
        if not (runner._resume and runner._load_from) or osp.realpath(
                osp.dirname(runner._load_from)) != osp.realpath(folder):
            return
        runner.message_hub.update_info('keep_ckpt_ids', [
            step for step in kept
            if is_regular(osp.join(folder, self.filename_tmpl.format(step)))
        ])
        for indicator in self.key_indicators if self.save_best else ():
            suffix = f'_{indicator}' if self.key_indicators[1:] else ''
            step = steps.get(f'best_step{suffix}')
            name = self.filename_tmpl.format(step)
            metric = '*' if indicator == 'auto' else glob.escape(
                indicator.replace('/', '_'))
            found = glob.glob(
                osp.join(
                    glob.escape(folder), f'best_{metric}_{glob.escape(name)}'))
            if len(found) == 1 and is_regular(found[0]):
                runner.message_hub.update_info(f'best_ckpt{suffix}', found[0])

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Note that the epoch was validated, and save the best checkpoint."""
        runner.message_hub.update_info(VALIDATED, runner.epoch)
        super().after_val_epoch(runner, metrics)

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """Save a checkpoint, then remove the outdated ones."""
        # The checkpoint before this one knows them, this one does not.
        self._remove_replaced()
        outdated = []
        if self.max_keep_ckpts > 0:
            # After a validation the checkpoint of an epoch is saved again.
            steps = [kept for kept in self.keep_ckpt_ids if kept != step]
            outdated = steps[:max(len(steps) + 1 - self.max_keep_ckpts, 0)]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend([*steps[len(outdated):], step])
            # Where training is killed before they are removed, they are when
            # it resumes.
            runner.message_hub.update_info('keep_ckpt_ids',
                                           [*outdated, *self.keep_ckpt_ids])

        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            AtomicLocalBackend().put_text(
                self.last_ckpt, osp.join(runner.work_dir, 'last_checkpoint'))
        self._remove([
            self.file_backend.join_path(self.out_dir,
                                        self.filename_tmpl.format(old))
            for old in outdated
        ])

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint, then remove the one before it."""
        if not self.save_best:
            return
        self.replaced = self._get_best()
        # Without their paths the host cannot remove them before the new ones
        # are there.
        self._set_best(dict.fromkeys(self.replaced))
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self._set_best({
                key: path or self.replaced.get(key)
                for key, path in self._get_best().items()
            })
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        """Remove the best checkpoints that better ones have replaced."""
        now = self._get_best() if self.replaced else {}
        # Training that was resumed from another folder leaves that alone.
        self._remove([
            path for key, path in self.replaced.items()
            if path and now.get(key) not in (
                None, path) and osp.dirname(path) == str(self.out_dir)
        ])

    def _get_best(self) -> dict:
        """Get the paths of the best checkpoints by their metrics."""
        if len(self.key_indicators) == 1:
            # 'auto' becomes the name of a metric.
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths: dict) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = next(iter(paths.values()))
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, paths: List[str]) -> None:
        if not is_main_process():
            return
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
