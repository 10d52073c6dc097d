# Copyright (c) dan_mm contributors. All rights reserved.
"""Attacks by the names of files and folders, which get into configs."""
import os
import shutil

import pytest
from conftest import ROOT, draw_face
from mmengine.config import Config
from PIL import Image

from dan_mm.cli import test, train
from dan_mm.datasets import FERFolder

WEIGHTS = f'{ROOT}/dan_mm/weights/dan-dlibresnet_ferplus.pth'
# MMEngine replaces it, as a regular expression and as its replacement, in the
# text of a config: the string ends early, and what follows is code.
EVIL = '{{$X:foo|\\\'+str(open("ran","w")),#}}'


def make_folder(root, *classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(draw_face(i)).save(root / name / f'{i}.png')
    return str(root)


def test_the_attack_runs_code(tmp_path):
    """Or there is nothing to refuse."""
    Config(dict(classes=('anger' * 20, EVIL))).dump(tmp_path / 'config.py')
    Config.fromfile(tmp_path / 'config.py')
    with open('ran') as file:
        assert file.read() == ''


@pytest.mark.parametrize('name', [EVIL, '{{ fileDirname }}', '{{_base_.x}}'])
@pytest.mark.parametrize('place', ['class', 'folder', 'checkpoint', 'work'])
def test_names_are_no_code(tmp_path, name, place):
    folder = make_folder(tmp_path / (name if place == 'folder' else 'mine'),
                         'glad', name if place == 'class' else 'grim')
    checkpoint = f'{name}.pth' if place == 'checkpoint' else 'x.pth'
    work = name if place == 'work' else 'work'
    with pytest.raises(SystemExit, match='expected no `{{`'):
        train.main([
            f'{ROOT}/configs/dan_ferplus.py', '--finetune', checkpoint, folder,
            '--work-dir', work
        ])
    if place in ('checkpoint', 'work'):
        shutil.copy(WEIGHTS, checkpoint)
        with pytest.raises(SystemExit, match='expected no `{{`'):
            test.main([
                f'{ROOT}/configs/dan-dlibresnet_ferplus.py', checkpoint,
                '--work-dir', work
            ])


@pytest.mark.parametrize('workers', [0, 2])
def test_finetuning_on_what_is_no_image(tmp_path, workers):
    """And on what is no regular file, which is left out."""
    folder = make_folder(tmp_path / 'mine', 'glad', 'grim')
    os.mkfifo(f'{folder}/glad/pipe.png')
    os.symlink('/dev/zero', f'{folder}/grim/zero.png')
    os.symlink('/dev/zero', f'{folder}/alignment.json')
    with open(f'{folder}/grim/9.png', 'w') as file:
        file.write('hello')
    with pytest.raises(SystemExit, match='^(ValueError: )?The image .*9.png'):
        train.main([
            f'{ROOT}/configs/dan-dlibresnet_ferplus.py', '--finetune', WEIGHTS,
            folder, '--work-dir', 'work', '--cfg-options',
            f'train_dataloader.num_workers={workers}',
            'train_dataloader.persistent_workers=False',
            'train_dataloader.batch_size=2'
        ])


def test_a_large_description_of_an_alignment(tmp_path):
    folder = make_folder(tmp_path / 'mine', 'glad', 'grim')
    with open(f'{folder}/alignment.json', 'w') as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match='cannot read .*alignment.json'):
        FERFolder(folder)
