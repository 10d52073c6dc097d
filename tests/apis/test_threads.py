# Copyright (c) dan_mm contributors. All rights reserved.
"""An inferencer is built and first used in any threads, or shared by them."""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from conftest import ROOT, shared
from mmengine.registry import DefaultScope

from dan_mm.apis import FaceDetector, FERInferencer
from dan_mm.models.retinaface_weights import get_checkpoint

THREADS = 8


def predict(inferencer, path):
    return [face.to_dict() for face in inferencer(path)[0].faces]


def run(work):
    """Run it in all threads at the same time."""
    barrier = Barrier(THREADS)

    def start(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


@pytest.fixture(scope='module')
def photograph():
    return shared('data', 'faces_london', '001_neutral.jpg')


def test_threads_share_one(detector_weights, photograph):
    expected = predict(FERInferencer(device='cpu'), photograph)
    assert len(expected) == 1
    inferencer = FERInferencer(device='cpu')
    detectors = set()

    def work(number):
        found = predict(inferencer, photograph)
        detectors.add(inferencer.detector)
        return found

    assert run(work) == [expected] * THREADS
    assert len(detectors) == 1


def test_threads_build_their_own(detector_weights, photograph):
    """With a detector of MMDetection, which is of another scope, in half of
    them."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmcv._ext')
    config = f'{ROOT}/configs/retinaface/retinaface_mobilenet0.25_widerface.py'
    checkpoint = get_checkpoint()

    def work(number):
        detector = None
        if number % 2:
            detector = FaceDetector(config, checkpoint, device='cpu')
        return predict(
            FERInferencer(device='cpu', detector=detector), photograph)

    expected = [work(0), work(1)] * (THREADS // 2)
    scope = DefaultScope.get_current_instance().scope_name
    assert run(work) == expected
    assert DefaultScope.get_current_instance().scope_name == scope
