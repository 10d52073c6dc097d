# Copyright (c) dan_mm contributors. All rights reserved.
"""The benchmark of training, on tiny sizes."""
import contextlib
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face

sys.path.append(f'{ROOT}/tools/analysis_tools')
from benchmarks import train  # noqa: E402 isort: skip

NUMBER = r'[\d.]+'


def test_ratios_are_medians_over_rounds():
    assert train.ratio([2, 9, 4], [1, 3, 4]) == 2
    calls = []
    times = train.in_turn(
        dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), 2)
    # Once more before the clock starts; the first round does not count.
    assert calls == ['a', 'a', 'b', 'b'] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_loading(capsys):
    train.measure_loading([np.stack([draw_face(1, 64)] * 3, 2)], 1, 4)
    lines = re.findall(
        rf'(\d+) pixels, (\w+) +{NUMBER}/s +{NUMBER}/s \( *{NUMBER}x\) +'
        rf'{NUMBER}/s \( *{NUMBER}x\)',
        capsys.readouterr().out)
    assert lines == [('48', 'PNG'), ('100', 'JPG'), ('350', 'JPG')]


def test_a_step_has_the_loss_of_the_original(capsys):
    train.measure_step(1, batch=4, size=64)
    out = capsys.readouterr().out
    losses = [
        float(value) for value in re.findall(r'first loss ([\d.]+)', out)
    ]
    assert len(losses) == 2 and losses[0] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert 'times as fast' in out


class Here:
    """A pool of processes that is this one: imports take seconds."""

    def __init__(self, method):
        assert method == 'spawn'

    def Pool(self, number):
        return contextlib.nullcontext(self)

    def apply(self, function, arguments):
        return function(*arguments)


@pytest.mark.slow
def test_growth(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(train, 'get_context', Here)
    monkeypatch.setattr(train, 'GROWTH',
                        dict(heads=[1], processes=[1], images=[20]))
    monkeypatch.setattr(train, 'SETTINGS',
                        dict(heads=4, size=64, batch=4, processes=1))
    threads = torch.get_num_threads()
    try:
        rows = train.measure_growth(1, 1)
    finally:
        torch.set_num_threads(threads)
    assert [row['setting'] for row in rows] == ['heads', 'processes', 'images']
    for row in rows:
        for name in {'original', 'ours'} & row.keys():
            seconds, memory = row[name]
            assert seconds > 0 and memory > 100
    assert 'MB' in capsys.readouterr().out
    train.draw_growth(rows, str(tmp_path / 'growth.png'))
    assert cv2.imread(str(tmp_path / 'growth.png')).std() > 5
