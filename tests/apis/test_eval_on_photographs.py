# Copyright (c) dan_mm contributors. All rights reserved.
"""The evaluation of a model together with the face detector."""
import csv
import re
import runpy

import cv2
import numpy as np
import pytest
from conftest import ROOT
from sklearn.datasets import load_sample_images

from dan_mm.apis.faces import Face
from dan_mm.datasets import FERPlus

TEMPLATE = np.array(FERPlus.METAINFO['alignment']['template'])


class FindsPasted:
    """Finds what differs from the scenes, with landmarks as FER+ has them."""

    def __init__(self, *args, **kwargs):
        self.scenes = [
            scene[..., ::-1].astype(int)
            for scene in load_sample_images().images
        ]

    def __call__(self, images):
        return [self.find(image) for image in images]

    def find(self, image):
        differs = min(
            (np.abs(image - scene).max(2) > 0 for scene in self.scenes),
            key=np.sum)
        y, x = np.nonzero(differs)
        first = np.array([x.min(), y.min()])
        side = max(np.ptp(x), np.ptp(y)) + 1
        return [
            Face(
                np.float32([*first, *(first + side)]), 0.9,
                np.float32(TEMPLATE * side + first))
        ]


@pytest.fixture
def tool(work_dir):
    main = runpy.run_path(
        f'{ROOT}/tools/portraits/eval_on_photographs.py')['main']

    def run(*arguments, detector=None):
        main.__globals__['FaceDetector'] = lambda *_, **__: detector
        main([str(work_dir), '--device', 'cpu', *map(str, arguments)])

    return run


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_pasted(tool, ferplus_root, capsys):
    """Found where they are, faces in scenes are told apart as well as clean
    crops are."""
    tool('--ferplus', ferplus_root, '--num', 40, detector=FindsPasted())
    output = capsys.readouterr().out
    assert '40 images of FER+' in output
    assert '100.0% found, and 0 faces elsewhere' in output
    clean = number(r'clean crops: ([\d.]+)%', output)
    pasted = number(r'in the scenes: ([\d.]+)%', output)
    assert abs(clean - pasted) <= 5


def test_portraits(tool, detector, image_of, tmp_path, capsys):
    with open(tmp_path / 'index.csv', 'w') as file:
        writer = csv.writer(file)
        writer.writerow(['file', 'person', 'expression'])
        for i in range(6):
            name = f'{i}.png'
            cv2.imwrite(str(tmp_path / name), image_of(int(i > 0), i))
            writer.writerow([name, i // 2, ('happy', 'neutral')[i % 2]])
    tool('--portraits', tmp_path, detector=detector)
    output = capsys.readouterr().out
    assert '6 portraits' in output and 'found in 83.3%' in output
    assert re.search(r'happiness +[\d.]+% of 2', output)
    assert re.search(r'neutral +[\d.]+% of 3', output)
    assert 'happiness against neutral' in output
    higher = re.search(r'in (\d) of 2 subjects', output)
    assert higher and int(higher[1]) <= 2
    assert 'leave-one-subject-out threshold' in output
    # No face at all is a result, too.
    for path in tmp_path.glob('*.png'):
        cv2.imwrite(str(path), image_of(0))
    tool('--portraits', tmp_path, detector=detector)
    assert 'found in 0.0%' in capsys.readouterr().out
    (tmp_path / '3.png').write_bytes(b'x')
    with pytest.raises(SystemExit, match='3.png cannot be decoded'):
        tool('--portraits', tmp_path, detector=detector)
    (tmp_path / 'index.csv').write_text('file,expression\n0.png,bored\n')
    with pytest.raises(SystemExit, match="the expression 'bored', expected"):
        tool('--portraits', tmp_path, detector=detector)
    with pytest.raises(SystemExit):
        tool()


def test_leave_one_subject_out_threshold(capsys):
    """Ten subjects, whose smiles are taken for neutral, but less surely."""
    compare_two = runpy.run_path(
        f'{ROOT}/tools/portraits/eval_on_photographs.py')['compare_two']
    truth = np.array([0, 1] * 10)
    happy = np.where(truth, 0.3, 0.02)
    compare_two(
        np.arange(20) // 2, truth, np.stack([1 - happy, happy], 1), 1, 0)
    output = capsys.readouterr().out
    assert number(r'equal scores: ([\d.]+)%', output) == 50
    assert number(r'([\d.]+) ROC AUC', output) == 1
    assert 'in 10 of 10 subjects' in output
    assert number(r'threshold: ([\d.]+)%', output) == 100
