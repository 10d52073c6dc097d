# Copyright (c) dan_mm contributors. All rights reserved.
"""Give thousands of broken files to `dan-mm predict` and `dan-mm align`.

Images of all formats, videos, checkpoints and alignments of folders are
changed at random; a tenth stays whole. Each is to end in a result or in an
error of its own; what goes wrong is counted, and its files are kept.
"""
import argparse
import contextlib
import csv
import functools
import io
import json
import multiprocessing
import os
import os.path as osp
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
CHECKPOINT = f'{ROOT}/dan_mm/weights/dan-dlibresnet_ferplus.pth'
FOLDER = 500  # files that a process gets
HANG = 60  # seconds without any output


def mutate(content, seed, changes):
    """Change bytes of a file."""
    content, chance = bytearray(content), random.Random(seed)
    for _ in range(changes):
        place = chance.randrange(len(content) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            del content[place:place + chance.randrange(1, 64)]
        elif kind == 1:
            content[place:place] = chance.randbytes(chance.randrange(1, 16))
        elif kind == 2 and changes > 1:
            del content[place:]
        elif kind == 3:
            content[place:place + 4] = chance.choice(
                [b'\xff' * 4, b'\0' * 4, b'\x7f\xff\xff\xff'])
        else:
            content[place:place + 1] = bytes([chance.randrange(256)])
        content = content or bytearray(1)
    return bytes(content)


def draw():
    """The face of the astronaut in scikit-image, or noise."""
    try:
        from skimage.data import astronaut
        return Image.fromarray(astronaut()[:220, 110:330]).resize((96, 96))
    except ImportError:
        noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), 'u1')
        return Image.fromarray(noise)


def make_images():
    """A small image in each format and mode, by its extension."""
    image, exif = draw(), Image.Exif()
    exif[274] = 6
    frames = dict(save_all=True, append_images=[image.rotate(90)])
    formats = [('.png', 'RGB', {}), ('.png', 'RGB', dict(exif=exif)),
               ('.png', '1', {}), ('.png', 'L', {}), ('.png', 'LA', {}),
               ('.png', 'P', {}), ('.png', 'I;16', {}),
               ('.png', 'RGBA', frames), ('.jpg', 'RGB', dict(exif=exif)),
               ('.jpeg', 'CMYK', {}), ('.jfif', 'RGB', dict(progressive=True)),
               ('.bmp', 'RGB', {}), ('.gif', 'RGB', frames),
               ('.webp', 'RGB', {}), ('.webp', 'RGBA', frames),
               ('.tiff', 'RGB', {}),
               ('.tif', 'RGB', dict(compression='tiff_lzw')),
               ('.tif', 'CMYK', dict(compression='jpeg')), ('.ppm', 'RGB', {}),
               ('.pgm', 'L', {}), ('.avif', 'RGB', {})]
    images = []
    for suffix, mode, more in formats:
        file = io.BytesIO()
        kind = Image.registered_extensions()[suffix]
        image.convert('L' if mode == 'I;16' else mode).convert(mode).save(
            file, kind, **more)
        images.append((suffix, file.getvalue()))
    # Nothing here writes HEIC.
    heic = Path(ROOT, '../shared/field/photo.heic')
    if heic.exists():
        images.append(('.heic', heic.read_bytes()))
    return images


@functools.lru_cache
def make_video(suffix='.avi', code='MJPG'):
    """A video of five frames."""
    frame = np.asarray(draw().resize((64, 64)))[..., ::-1]
    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, f'x{suffix}')
        video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*code), 25,
                                (64, 64))
        for i in range(5):
            video.write(np.roll(frame, i, 0))
        video.release()
        return Path(path).read_bytes()


def make_inputs(folder, number, seed):
    """Write files, of which each tenth is whole."""
    chance = random.Random(seed)
    videos = ('.avi', 'MJPG'), ('.mp4', 'mp4v'), ('.mkv', 'MJPG')
    votes = b'Training,a.png,9,0,1,0,0,0,0,0,0,0\n'
    sources = dict(
        files=make_images(),
        videos=[(suffix, make_video(suffix, code)) for suffix, code in videos],
        checkpoints=[('.pth', Path(CHECKPOINT).read_bytes())],
        annotations=[('.json', b'{"size": 112, "margin": 0.1}'),
                     ('.txt', b'train_00001.jpg 5\ntest_0001.jpg 7\n'),
                     ('.csv', votes)])
    kinds = chance.choices(list(sources), [86, 4, 5, 5], k=number)
    for i, kind in enumerate(kinds):
        suffix, content = chance.choice(sources[kind])
        name = f'{i}-whole{suffix}'
        if i % 10:
            content = mutate(content, chance.random(), chance.randint(1, 6))
            name = f'{i}{suffix}'
        # `dan-mm align` takes no videos.
        group = f'{kind}{i // FOLDER * (kind == "files")}'
        path = folder / group / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def load_annotation(path):
    """Read a file of a data set, and the labels in it."""
    from dan_mm.datasets import RAFDB, FERFolder, FERPlus
    kind, place, image = {
        '.json': (FERFolder, 'alignment.json', 'glad/a.png'),
        '.txt': (RAFDB, 'EmoLabel/list_patition_label.txt',
                 'Image/aligned/train_00001_aligned.jpg'),
        '.csv': (FERPlus, 'fer2013new.csv', 'FER2013Train/a.png')
    }[osp.splitext(path)[1]]
    with tempfile.TemporaryDirectory() as root:
        for name in place, image, 'grim/b.png', 'glad/b.png', 'grim/a.png':
            os.makedirs(osp.dirname(osp.join(root, name)), exist_ok=True)
            Path(root, name).touch()
        shutil.copy(path, osp.join(root, place))
        try:
            kind(root)
        except (OSError, ValueError):
            return 2
        return 0


def run(tasks, out):
    """Do tasks in this process, and log what they print."""
    log = open(out / 'log', 'w', 1, errors='backslashreplace')
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    from dan_mm import cli
    with open(out / 'statuses', 'w', 1) as statuses:
        for name, task in tasks:
            print(f'=== {name}', file=log)
            try:
                status = (
                    cli.main(task)
                    if isinstance(task, list) else load_annotation(task))
            except BaseException:
                traceback.print_exc(file=log)
                status = 'traceback'
            print(f'{name} {status}', file=statuses)


def processes(pid):
    """A process and all that it has started."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in os.listdir(f'/proc/{pid}/task'):
            children = Path(f'/proc/{pid}/task/{thread}/children').read_text()
            for child in children.split():
                yield from processes(int(child))


def memory(pid):
    """The memory of a process and its share of what others use, too, in
    bytes."""
    with contextlib.suppress(OSError):
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
        return 1024 * int(re.search(r'Pss:\s+(\d+)', text)[1])
    return 0


def attack(tasks, out):
    """Do tasks in a process of its own, which is killed if it hangs.

    Returns:
        tuple[str, int]: How it ended, and its peak memory.
    """
    out.mkdir(parents=True)
    process = multiprocessing.get_context('spawn').Process(
        target=run, args=(tasks, out))
    process.start()
    peak, written, since = 0, None, time.time()
    while process.is_alive():
        process.join(0.1)
        peak = max(peak, sum(map(memory, processes(process.pid))))
        if time.time() - since > 5:
            now = [os.stat(path).st_size for path in out.rglob('*')]
            if now != written:
                written, since = now, time.time()
        if time.time() - since > HANG:
            for pid in [*processes(process.pid)]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return 'hang', peak
    return 'crash' if process.exitcode else 'end', peak


def read_results(out):
    """The error of each input that has a result, None without one."""
    found = {}
    # What was written before a hang or a crash has another name.
    for path in out.glob('x.json*'):
        for line in path.read_text(errors='replace').splitlines():
            with contextlib.suppress(ValueError):
                result = json.loads(line)
                found[osp.basename(result['path'])] = result.get('error')
    for path in out.glob('faces/faces.csv'):
        with open(path, newline='') as file:
            for row in csv.DictReader(file):
                broken = row['status'] == 'broken'
                found[row['path']] = row['detail'] if broken else None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('number', type=int, help='how many files')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work-dir',
        default='attacks',
        help='a new folder for the files and what was said about them')
    args = parser.parse_args()
    work, start = Path(args.work_dir), time.time()
    work.mkdir(parents=True)
    make_inputs(work / 'in', args.number, args.seed)
    whole = work / 'whole.png'
    draw().save(whole)
    counts, peak = Counter(), 0
    for folder in sorted((work / 'in').iterdir()):
        names, out = sorted(os.listdir(folder)), work / 'out' / folder.name
        predict = ['predict', '--device', 'cpu', '--json', str(out / 'x.json')]
        single = folder.name in ('annotations0', 'checkpoints0')
        if folder.name == 'annotations0':
            tasks = [(name, str(folder / name)) for name in names]
        elif folder.name == 'checkpoints0':
            tasks = [(name, [
                *predict, '--aligned',
                str(whole), '--model',
                str(folder / name)
            ]) for name in names]
        elif folder.name[-1] in '13579':
            faces = str(out / 'faces')
            tasks = [('align',
                      ['align', '--device', 'cpu',
                       str(folder), faces])]
        else:
            tasks = [('predict', [*predict, str(folder)])]
        ended, used = attack(tasks, out)
        statuses = dict(line.split()
                        for line in open(out / 'statuses').readlines())
        log = (out / 'log').read_text(errors='replace')
        results = read_results(out)
        if single:
            results = {
                name: None if status == '0' else status
                for name, status in statuses.items()
            }
        elif any(status not in '01' for status in statuses.values()):
            ended = 'crash'
        lost = [
            name for name in names if name not in results
            or 'whole' in name and results[name] is not None
        ]
        here = Counter(
            inputs=len(names),
            answered=sum(name in results and results[name] is None
                         for name in names),
            refused=sum(results.get(name) is not None for name in names),
            tracebacks=log.count('Traceback (most recent call last)') +
            sum('Traceback' in str(error) for error in results.values()),
            hangs=ended == 'hang',
            crashes=ended == 'crash',
            lost=len(lost))
        counts, peak = counts + here, max(peak, used)
        print(f'{folder.name}: {dict(here)}, {used / 2**20:.0f} MiB',
              *lost[:5])
    wrong = sum(counts[key]
                for key in ('tracebacks', 'hangs', 'crashes', 'lost'))
    total = {key: counts[key] for key in here}
    print(f'{total}, peak memory {peak / 2**20:.0f} MiB, '
          f'{time.time() - start:.0f} s, seed {args.seed}')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
