# Copyright (c) dan_mm contributors. All rights reserved.
"""Tell the expressions of the faces of images, folders and videos, and print
them, or write them where an option says.

The exit status is 0 if all could be read, 1 if something could not, 2 if the
command could not begin or go on.
"""
import argparse
import csv
import json
import os.path as osp
import signal
import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import IO, Iterator, List, Sequence

from dan_mm.files import check_file, check_result, open_result, to_cell
from .config import add_detector_arguments, add_model_arguments
from .output import add_verbose, results_only

HELP = 'tell the expressions of the faces of images and videos'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'inputs',
        nargs='+',
        help='images, videos, folders, or the number of a camera')
    add_model_arguments(parser)
    parser.add_argument(
        '--out',
        help='a folder for annotated images and videos, with the tree of '
        'the input')
    parser.add_argument(
        '--json', help='a file for JSON lines, one an image; - is the output')
    parser.add_argument(
        '--csv', help='a file for a table, one row a face; - is the output')
    parser.add_argument(
        '--timeline',
        help='a folder for tables, a summary and a figure of the expressions '
        'of each person of a video over time')
    parser.add_argument(
        '--aligned',
        action='store_true',
        help='the images are aligned crops of one face: no detector')
    parser.add_argument(
        '--smoothing',
        type=float,
        help='in videos, follow faces and average their scores: the weight '
        'of the past in [0, 1), such as 0.8')
    parser.add_argument(
        '--every',
        type=int,
        default=1,
        help='in videos, search faces in every n-th frame, and follow them '
        'between (default: %(default)s)')
    parser.add_argument(
        '--embeddings',
        action='store_true',
        help='add the features before the classifier to the JSON lines')
    add_detector_arguments(parser)
    add_verbose(parser)


def run(args: argparse.Namespace) -> int:
    with results_only(args.verbose) as output:
        return predict(args, output)


def predict(args: argparse.Namespace, output: IO[str]) -> int:
    from rich.console import Console
    from rich.progress import (BarColumn, MofNCompleteColumn, Progress,
                               TextColumn, TimeRemainingColumn)

    from dan_mm.apis import FaceDetector, FERInferencer
    from dan_mm.apis.inferencer import printable
    from dan_mm.apis.media import expand
    inputs = [
        int(item) if item.isdecimal() and not osp.exists(item) else item
        for item in args.inputs
    ]
    sources = expand(inputs[0] if len(inputs) == 1 else inputs)
    annotated = timeline = None
    if args.timeline:
        from dan_mm.apis.timeline import TimelineWriter
        timeline = TimelineWriter(args.timeline, inputs, sources)
        if args.smoothing is None:
            args.smoothing = 0  # it tracks faces
    if args.out:
        from dan_mm.apis.annotate import AnnotatedWriter
        annotated = AnnotatedWriter(args.out, inputs, sources)
    check_results(args, sources, annotated, timeline)
    inferencer = FERInferencer(
        args.model,
        args.config,
        device=args.device,
        batch_size=args.batch_size,
        precision=args.precision)
    if not args.aligned:
        inferencer.detector = FaceDetector(
            args.detector_config,
            args.detector_checkpoint,
            device=args.device,
            score_thr=args.score_thr,
            export=inferencer.export)
    summary, writers = Summary(), []
    console = Console(stderr=True)
    # A camera is endless.
    endless = any(isinstance(item, int) for item in sources)
    total = None if endless else len(sources)
    with ExitStack() as stack, Progress(
            TextColumn('Predicting'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            # Results on the same terminal show how far it is.
            disable=not console.is_terminal or output.isatty()) as progress:
        task = progress.add_task('', total=total)
        for image, result in inferencer.stream_images(
                sources,
                aligned=args.aligned,
                embeddings=args.embeddings,
                smoothing=args.smoothing,
                every=args.every):
            # An error before the first result changes no file.
            if not writers:
                writers = open_writers(args, annotated, timeline,
                                       inferencer.classes, output, stack)
            summary.add(result)
            for write in writers:
                write(image, result)
            # The frames of a video are known when it is open.
            if image.frame == 0 and image.frames and not endless:
                total += image.frames - 1
                progress.update(task, total=total)
            progress.advance(task)
    if annotated:
        summary.errors += annotated.errors
    output.flush()
    for line in summary.lines():
        print(printable(line), file=sys.stderr)
    return int(bool(summary.errors))


def check_results(args: argparse.Namespace, sources: Sequence, annotated,
                  timeline) -> None:
    """Refuse files that cannot be written, are no earlier results, or would
    be written twice."""
    files = {
        kind: path
        for kind in ('json', 'csv') if (path := getattr(args, kind))
    }
    models = (args.model, args.config, args.detector_config,
              args.detector_checkpoint)
    read = [item for item in (*sources, *models) if isinstance(item, str)]
    taken = set()
    for kind, path in files.items():
        place = osp.realpath('/dev/stdout' if path == '-' else path)
        if taken & {place, f'{place}.partial'}:
            raise ValueError(f'Got {args.json} for --json and {args.csv} for '
                             '--csv, expected two files.')
        taken |= {place, f'{place}.partial'}
        if path == '-':
            continue
        check_result(path, kind)
        check_file(path, read)
        if annotated and annotated.writes(place):
            raise ValueError(f'Got {path} for --{kind}, which --out '
                             f'{args.out} writes, too, expected another file.')
        if timeline and timeline.writes(place):
            raise ValueError(f'Got {path} for --{kind} in a folder of '
                             f'--timeline {args.timeline}, expected another '
                             'folder.')
    if annotated and timeline and any(
            annotated.writes(osp.join(folder, 'timeline.png'))
            for folder in timeline.folders.values()):
        raise ValueError(f'Got {args.out} for --out and {args.timeline} for '
                         '--timeline, expected two folders.')


def open_writers(args: argparse.Namespace, annotated, timeline,
                 classes: Sequence[str], output: IO[str],
                 stack: ExitStack) -> list:
    """Open the outputs that the options name, until the stack ends."""

    def open_text(path: str) -> IO[str]:
        # - is the output.
        return output if path == '-' else stack.enter_context(
            open_result(path))

    writers = []
    if args.json:
        writers.append(partial(write_json, open_text(args.json)))
    if args.csv:
        writers.append(CSVWriter(open_text(args.csv), classes).write)
    if annotated:
        writers.append(stack.enter_context(annotated).write)
    if timeline:
        # What ends a process is for it what Ctrl-C is.
        stack.callback(
            signal.signal, signal.SIGTERM,
            signal.signal(signal.SIGTERM, signal.default_int_handler))
        writers.append(stack.enter_context(timeline.open(classes)))
    return writers or [partial(print_faces, output)]


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


class Summary:
    """What happened to the images."""

    def __init__(self) -> None:
        self.images = 0
        self.frames = 0
        self.faces: Counter = Counter()
        self.errors: List[str] = []

    def add(self, result) -> None:
        """Take the result of an image."""
        if result.error:
            self.errors.append(result.error)
            # Of one that was read, a face may have failed.
            if not result.faces:
                return
        if result.frame is None:
            self.images += 1
        else:
            self.frames += 1
        self.faces.update(face.expression for face in result.faces)

    def lines(self) -> Iterator[str]:
        """Say it."""
        counts = [
            _count(number, noun)
            for number, noun in ((self.images, 'image'),
                                 (self.frames, 'frame')) if number
        ] or ['0 images']
        counts.append(_count(sum(self.faces.values()), 'face'))
        parts = ', '.join(f'{name} {number}'
                          for name, number in self.faces.most_common())
        yield ', '.join(counts) + (f': {parts}' if parts else '')
        yield from self.errors[:10]
        if self.errors[10:]:
            yield f'And {len(self.errors) - 10} more that could not be read.'


def print_faces(file: IO[str], image, result) -> None:
    """Print a line for each face of an image, or that there is none."""
    from dan_mm.apis.inferencer import printable
    place = printable(str(result.path))
    if result.frame is not None:
        place += f', frame {result.frame} ({result.time:.2f} s)'
    for number, face in enumerate(result.faces, 1):
        number = number if face.track is None else face.track
        scores = sorted(face.scores.items(), key=lambda item: -item[1])
        text = ', '.join(f'{name} {score:.0%}' for name, score in scores[:3])
        if face.landmarks_plausible is False:
            text += ' (implausible landmarks: may be wrong)'
        print(f'{place}: face {number}: {text}', file=file)
    # Errors come at the end, all together.
    if not result.faces and not result.error:
        print(f'{place}: no face', file=file)


def write_json(file: IO[str], image, result) -> None:
    """Write a JSON object, on a line."""
    # Names that are no valid text stay readable as escapes.
    file.write(json.dumps(result.to_dict(), allow_nan=False) + '\n')
    file.flush()


class CSVWriter:
    """Write a row for each face, and for each image without one."""

    def __init__(self, file: IO[str], classes: Sequence[str]) -> None:
        self.file = file
        self.classes = classes
        self.writer = csv.writer(file)
        self.writer.writerow([
            'path', 'frame', 'time', 'track', 'left', 'top', 'right', 'bottom',
            'score', 'expression', *map(to_cell, classes),
            'landmarks_plausible', 'error'
        ])

    def write(self, image, result) -> None:
        """Write an image."""
        path = result.path
        place = [
            to_cell(path) if isinstance(path, str) else path, result.frame,
            result.time
        ]
        problem = to_cell(result.error or '')
        for face in result.faces:
            box = [None] * 4 if face.bbox is None else [
                f'{value:.2f}' for value in face.bbox
            ]
            self.writer.writerow([
                *place, face.track, *box,
                None if face.score is None else f'{face.score:.4f}',
                to_cell(face.expression), *(f'{face.scores[name]:.4f}'
                                            for name in self.classes),
                None if face.landmarks_plausible is None else str(
                    face.landmarks_plausible).lower(), problem
            ])
        if not result.faces:
            blanks = [None] * (8 + len(self.classes))
            self.writer.writerow([*place, *blanks, problem])
        self.file.flush()
