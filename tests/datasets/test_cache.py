# Copyright (c) dan_mm contributors. All rights reserved.
"""Decoded images in a file."""
import copy
import os
import pickle
from multiprocessing import get_context
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import draw_face
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS

from dan_mm.datasets import RAFDB, ImageCache

PIPELINE = [
    dict(type='LoadCheckedImage'),
    dict(type='AntialiasResize', scale=(64, 64)),
    dict(type='PackInputs'),
]
pytestmark = pytest.mark.filterwarnings('ignore:.*official split')


@pytest.fixture
def root(tmp_path):
    """Small and large images of RAF-DB."""
    folder = tmp_path / 'Image' / 'aligned'
    folder.mkdir(parents=True)
    (tmp_path / 'EmoLabel').mkdir()
    lines = []
    for i in range(14):
        img = np.stack([draw_face(i + c, 48 if i % 2 else 100)
                        for c in range(3)], 2)  # yapf: disable
        cv2.imwrite(str(folder / f'train_{i:05d}_aligned.jpg'), img)
        lines.append(f'train_{i:05d}.jpg {i % 7 + 1}')
    path = tmp_path / 'EmoLabel' / 'list_patition_label.txt'
    path.write_text('\n'.join(lines))
    return tmp_path


def build(root, cache='cache', pipeline=PIPELINE, **kwargs):
    return RAFDB(str(root), cache=cache, pipeline=pipeline, **kwargs)


def samples(dataset):
    return [(sample['inputs'].numpy(), sample['data_samples'].to_dict())
            for sample in map(dataset.__getitem__, range(len(dataset)))]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for (img, fields), (other, others) in zip(found, expected):
        assert np.array_equal(img, other)
        assert fields.keys() <= others.keys()
        for key, value in fields.items():
            assert np.all(np.asarray(value) == np.asarray(others[key])), key


def files(root):
    return sorted(p.name for p in (root / 'cache').iterdir())


def change(root, number):
    path = str(root / f'Image/aligned/train_{number:05d}_aligned.jpg')
    cv2.imwrite(path, 255 - cv2.imread(path))
    os.utime(path, (1, 1))


def test_gives_the_same_samples(root, capsys):
    dataset = build(root)
    assert_same(samples(dataset), samples(build(root, None)))
    # The smaller of the file's and the pipeline's size, said before
    size = 3 * (7 * 48**2 + 7 * 64**2)
    assert (root / 'cache' / files(root)[-1]).stat().st_size == size
    assert f'take {size / 1e6:.0f} MB' in capsys.readouterr().out
    # A second time nothing is written.
    before = [(root / 'cache' / name).stat() for name in files(root)]
    assert_same(samples(build(root)), samples(dataset))
    assert before == [(root / 'cache' / name).stat() for name in files(root)]
    assert 'MB' not in capsys.readouterr().out


def test_images_are_copies(root):
    dataset = build(root, pipeline=PIPELINE[:1])
    dataset[0]['img'][:] = 0
    assert dataset[0]['img'].any()


def test_subsets_and_splits_have_their_own_images(root):
    for options in (dict(indices=[5, 2]), dict(target_classes=['happy'])):
        with pytest.warns():
            assert_same(
                samples(build(root, **options)),
                samples(build(root, None, **options)))
    datasets = build(root), build(root, None)
    for dataset in datasets:
        dataset.get_subset_([9, 3])
    assert_same(*map(samples, datasets))


def test_a_changed_image_is_read_again(root):
    before = files(build(root) and root)
    change(root, 3)
    dataset = build(root)
    assert_same(samples(dataset), samples(build(root, None)))
    # Those of before are gone.
    assert len(files(root)) == 2 and files(root) != before


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('content', [b'', b'\x93NUMPY', None])
def test_a_damaged_file_is_written_again(root, number, content):
    expected = samples(build(root))
    path = root / 'cache' / files(root)[number]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert_same(samples(build(root)), expected)


def test_an_index_that_leaves_the_file(root):
    expected = samples(build(root))
    [path] = (root / 'cache').glob('*.npy')
    index = np.load(path)
    for row in ([2**62, 2**62, 2**62, 2**62, 1, 1,
                 1], [0, 48, -48, 3, 1, 1, 1], [0, 48, 48, 3, 1, 1, 99]):
        wrong = index.copy()
        wrong[4] = row
        np.save(path, wrong)
        assert_same(samples(build(root)), expected)


def test_an_interrupted_run_leaves_no_index(root, monkeypatch):
    build(root)
    change(root, 3)

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, 'save', fail)
        with pytest.raises(KeyboardInterrupt):
            build(root)
    assert [name[-4:] for name in files(root)] == ['.bin']
    assert_same(samples(build(root)), samples(build(root, None)))


def test_without_a_place_it_does_without(root, monkeypatch):
    (root / 'file').write_text('')
    with pytest.warns(UserWarning, match='cannot be written.*Set `cache`'):
        dataset = build(root, 'file/cache')
    assert_same(samples(dataset), samples(build(root, None)))
    monkeypatch.setattr('shutil.disk_usage',
                        lambda path: SimpleNamespace(free=9))
    with pytest.warns(UserWarning, match='GB free, expected'):
        build(root, 'other')


def test_a_broken_image_is_named(root):
    path = root / 'Image/aligned/train_00003_aligned.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match='train_00003_aligned.*truncated'):
        build(root)
    assert not files(root)


def test_random_transforms_are_not_cached(root):
    transforms = Compose([
        TRANSFORMS.build(dict(type='RandomFlip', prob=0.5)),
        *map(TRANSFORMS.build, PIPELINE)
    ]).transforms  # yapf: disable
    with pytest.raises(ValueError, match='expected LoadCheckedImage'):
        ImageCache(str(root), 'RAFDB', [], transforms)


def test_copies_and_pickles_map_the_file(root):
    dataset = build(root)
    content = pickle.dumps(dataset.cache)
    assert len(content) < 5000
    expected = samples(dataset)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert_same(samples(other), expected)


def _size(path, queue):
    queue.put(sum(img.sum() for img, _ in samples(build(path))))


def test_processes_share_it(root):
    """They wait for the one that writes it."""
    context = get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=_size, args=(root, queue))
                 for _ in range(3)]  # yapf: disable
    for process in processes:
        process.start()
    assert len({queue.get(timeout=60) for _ in processes}) == 1
    for process in processes:
        process.join()
    assert len(files(root)) == 2
