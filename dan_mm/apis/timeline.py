# Copyright (c) dan_mm contributors. All rights reserved.
"""Tables and figures of the expressions of a video's persons over time."""
import csv
import io
import os
import os.path as osp
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import cv2
import numpy as np

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('The figure of a timeline needs matplotlib, which is '
                      'missing. Run `pip install matplotlib`.') from error

from dan_mm.files import (check_tree, is_regular, lock_folder, to_cell,
                          write_bytes)
from dan_mm.imaging import align_face
from dan_mm.reading import InputImage
from .drawing import find_font
from .inferencer import FaceResult, ImageResult
from .media import Source, is_video, place_in_tree
from .tracking import MAX_MISSED

SUMMARY, FIGURE = 'summary.csv', 'timeline.png'
TABLE = re.compile(r'person_\d+\.csv(\.partial)?')
PERSON_COLUMNS = ('frame', 'time', 'duration', 'left', 'top', 'right',
                  'bottom', 'score', 'expression')
SUMMARY_COLUMNS = 'person', 'first', 'last', 'seconds'
# Persons who are seen for less, and for less than half of the video, have a
# row of the summary and nothing else.
MIN_SECONDS = 1
MAX_DRAWN = 8  # persons, those that are seen longest
# Bins of time of the figure: when there are more, they become twice as long.
FIRST_BIN, MAX_BINS = 1 / 64, 800
THUMBNAIL, MARGIN = 96, 0.15  # pixels; of the box
BORDER = round(THUMBNAIL * MARGIN / (1 + 2 * MARGIN))
# Okabe and Ito's colours, which most colour-blind people can tell apart
COLORS = dict(
    neutral='#bbbbbb',
    happiness='#f0e442',
    surprise='#e69f00',
    sadness='#0072b2',
    anger='#d55e00',
    disgust='#009e73',
    fear='#cc79a7',
    contempt='#56b4e9')
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
         3600, 7200)  # seconds


@dataclass
class Person:
    """What is known of a person: times in seconds, ``shares`` and the values
    of ``bins``, float64 of shape ``(num_classes, )``, are seconds of each
    expression: those where it was the most likely one, and probabilities times
    seconds."""
    first: float
    shares: np.ndarray
    last: float = 0
    frame: int = 0
    seconds: float = 0
    bins: Dict[int, np.ndarray] = field(default_factory=dict)
    quality: float = 0
    thumbnail: Optional[np.ndarray] = None


class TimelineWriter:
    """Write who shows which expressions when, for videos whose faces are
    tracked: a table of each person, a summary and a figure. Memory does not
    grow with the length of a video, but for a few numbers a person.

    The files of a single video are in ``out``, those of several in a folder
    each, in the tree of the inputs. Earlier ones are replaced when a video
    ends; until then, tables are in ``person_*.csv.partial``.

    Args:
        out (str): The folder to write.
        inputs (Sequence): What was given: the paths in a folder stay.
        sources (Sequence): All files of that.

    Raises:
        OSError: If the folder can't be written to, or has files of the same
            names that are no earlier result.
        ValueError: If there is no video, or the folder is in one of the
            inputs, or has one.
    """

    def __init__(self, out: str, inputs: Sequence[Source],
                 sources: Sequence[Source]) -> None:
        videos = dict.fromkeys(item for item in sources if is_video(item))
        if not videos:
            raise ValueError('Got no video for --timeline, expected one: '
                             'images have no time. Give a video or a camera.')
        self.out = out
        self.folders: Dict[str, str] = {}
        for item in videos:
            path = f'camera {item}' if isinstance(item, int) else item
            stem = osp.splitext(place_in_tree(path, inputs))[0]
            folder = osp.join(out, stem) if len(videos) > 1 else out
            number = 1
            while folder in self.folders.values():
                number += 1
                folder = osp.join(out, f'{stem}-{number}')
            self.folders[path] = folder
        read = [item for item in (*inputs, *sources) if isinstance(item, str)]
        check_tree(out, read,
                   [osp.join(one, '') for one in self.folders.values()])
        for folder in self.folders.values():
            _check_earlier(folder)
        self.path: Optional[str] = None

    def writes(self, path: str) -> bool:
        """Tell if a file may be in one of the folders to write."""
        return osp.dirname(osp.realpath(path)) in map(osp.realpath,
                                                      self.folders.values())

    @contextmanager
    def open(self, classes: Sequence[str]) -> Iterator[Callable]:
        """Lock the folder, and give :meth:`write`. The files are complete
        when it ends, also by Ctrl-C; after another exception, the tables are
        in ``person_*.csv.partial``."""
        self.classes = classes
        with lock_folder(self.out):
            try:
                yield self.write
            except KeyboardInterrupt:
                self._finish()
                raise
            self._finish()

    def write(self, image: InputImage, result: ImageResult) -> None:
        """Take the next frame and its faces, which have tracks. Images are
        left out."""
        if image.frame is None:
            return
        if image.path != self.path or not image.frame:
            self._finish()
            self._start(image.path)
        # The time of a frame that is broken is not known.
        self._settle(image.time)
        if image.img is not None:
            self.pending = image
            self.faces = result.faces
            for face in result.faces:
                self._look(image, face)
            if len(self.persons) > self.many:
                self._forget(image.frame)

    def _start(self, path: str) -> None:
        self.path, self.folder = path, self.folders[path]
        os.makedirs(self.folder, exist_ok=True)
        for name in os.listdir(self.folder):
            if TABLE.fullmatch(name) and name.endswith('.partial'):
                os.remove(osp.join(self.folder, name))
        self.persons: Dict[int, Person] = {}
        self.pending: Optional[InputImage] = None
        self.length, self.bin, self.many = 1 / 25, FIRST_BIN, 4 * MAX_DRAWN

    def _look(self, image: InputImage, face: FaceResult) -> None:
        """Keep the sharpest and most certain face of a person."""
        person = self.persons.setdefault(
            face.track, Person(image.time, np.zeros(len(self.classes))))
        person.frame = image.frame
        box = face.bbox
        if box is None or not (box[2:] > box[:2]).all():
            box = np.array([0, 0, *image.img.shape[1::-1]])
        # In a small face, one out of focus or one that moves, there is little
        # detail at the size of the figure.
        crop = align_face(image.img, None, box, THUMBNAIL, MARGIN)
        # Without the margin, which may be outside the image
        inner = crop[BORDER:-BORDER, BORDER:-BORDER]
        quality = (face.score or 1) * cv2.Laplacian(inner, cv2.CV_32F).std()
        if person.thumbnail is None or quality > person.quality:
            person.quality, person.thumbnail = quality, crop

    def _settle(self, time: Optional[float]) -> None:
        """Count the frame before, which was shown until that time."""
        if self.pending is None:
            return
        frame, self.pending = self.pending, None
        if time is None:
            self.length = frame.duration or self.length
        else:
            self.length = max(time - frame.time, 0)
        end = frame.time + self.length
        while end > MAX_BINS * self.bin:
            self._widen()
        # Parts of the frame in bins
        first, last = (
            int(max(one, 0) / self.bin) for one in (frame.time, end))
        parts = {
            i: max(
                min(end, (i + 1) * self.bin) - max(frame.time, i * self.bin),
                0)
            for i in range(first, last + 1)
        }
        for face in self.faces:
            person = self.persons[face.track]
            scores = np.array([face.scores[name] for name in self.classes])
            person.last = end
            person.seconds += self.length
            person.shares[scores.argmax()] += self.length
            for i, part in parts.items():
                person.bins[i] = person.bins.get(i, 0) + part * scores
            self._append(frame, face)

    def _append(self, frame: InputImage, face: FaceResult) -> None:
        path = self._table(face.track) + '.partial'
        new = not osp.exists(path)
        # Closed at once: persons may be many, and what is killed leaves all.
        with open(path, 'a', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([
                    *PERSON_COLUMNS, *map(to_cell, self.classes),
                    'landmarks_plausible'
                ])
            box = [None] * 4 if face.bbox is None else [
                f'{value:.2f}' for value in face.bbox
            ]
            plausible = face.landmarks_plausible
            writer.writerow([
                frame.frame, f'{frame.time:.6f}', f'{self.length:.6f}', *box,
                None if face.score is None else f'{face.score:.4f}',
                to_cell(face.expression), *(f'{face.scores[name]:.4f}'
                                            for name in self.classes),
                None if plausible is None else str(plausible).lower()
            ])

    def _table(self, number: int) -> str:
        return osp.join(self.folder, f'person_{number}.csv')

    def _widen(self) -> None:
        self.bin *= 2
        for person in self.persons.values():
            bins: Dict[int, np.ndarray] = {}
            for i, value in person.bins.items():
                bins[i // 2] = bins.get(i // 2, 0) + value
            person.bins = bins

    def _forget(self, frame: int) -> None:
        """Drop faces and bins of those who will not be drawn: they are gone,
        and enough others were seen for longer."""
        drawn = self._longest()
        for number, person in self.persons.items():
            if number not in drawn and frame - person.frame > MAX_MISSED:
                person.bins, person.thumbnail = {}, None
        self.many = len(self.persons) + 4 * MAX_DRAWN

    def _longest(self) -> List[int]:
        order = sorted(self.persons, key=lambda i: -self.persons[i].seconds)
        return order[:MAX_DRAWN]

    def _finish(self) -> None:
        """Give all files of a video their names, and remove those of an
        earlier run."""
        if self.path is None:
            return
        # The last frame, for as long as it says
        self._settle(None)
        self.path = None
        rows, kept = io.StringIO(), set()
        writer = csv.writer(rows)
        writer.writerow([*SUMMARY_COLUMNS, *map(to_cell, self.classes)])
        total = max((one.last for one in self.persons.values()), default=0)
        for number, person in self.persons.items():
            shares = person.shares / (person.seconds or 1)
            writer.writerow([
                number, f'{person.first:.3f}', f'{person.last:.3f}',
                f'{person.seconds:.3f}', *(f'{one:.4f}' for one in shares)
            ])
            table = self._table(number)
            if person.seconds < min(MIN_SECONDS, total / 2):
                continue  # its table is removed below
            # Ctrl-C may have come before the first row.
            with suppress(FileNotFoundError):
                os.replace(f'{table}.partial', table)
                kept.add(osp.basename(table))
        for name in os.listdir(self.folder):
            if TABLE.fullmatch(name) and name not in kept:
                os.remove(osp.join(self.folder, name))
        write_bytes(osp.join(self.folder, SUMMARY), rows.getvalue().encode())
        drawn = [
            i for i in sorted(self._longest())
            if osp.basename(self._table(i)) in kept
        ]
        figure = osp.join(self.folder, FIGURE)
        if drawn:
            content = io.BytesIO()
            draw_timeline({
                i: self.persons[i]
                for i in drawn
            }, self.classes, self.bin, total,
                          len(kept) - len(drawn)).savefig(
                              content, dpi=120)
            write_bytes(figure, content.getvalue())
        else:
            with suppress(FileNotFoundError):
                os.remove(figure)


def _check_earlier(folder: str) -> None:
    """Refuse a folder with files of the names to write that are something
    else."""
    names = os.listdir(folder) if osp.isdir(folder) else []
    for name in names:
        path = osp.join(folder, name)
        if name == SUMMARY:
            columns = SUMMARY_COLUMNS
        elif TABLE.fullmatch(name):
            columns = PERSON_COLUMNS
        elif name == FIGURE and SUMMARY not in names:
            columns = None
        else:
            continue
        start = ''.join(f'{column},' for column in columns or ()).encode()
        if columns and is_regular(path):
            with open(path, 'rb') as file:
                if file.read(len(start)) == start:
                    continue
        raise FileExistsError(
            f'{path} exists and is no earlier result of --timeline. Remove '
            'it, or give another folder.')


def draw_timeline(persons: Dict[int, Person],
                  classes: Sequence[str],
                  width: float,
                  length: float,
                  others: int = 0) -> Figure:
    """Draw the expressions of persons over time, one below the other.

    Args:
        persons (dict[int, Person]): The persons by their numbers.
        classes (Sequence[str]): The names of the classes.
        width (float): Of a bin, in seconds.
        length (float): Of the time axis, in seconds.
        others (int): How many persons are not drawn. Defaults to 0.

    Returns:
        Figure: The figure of matplotlib.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Patch
    spare = iter([color for name, color in COLORS.items()
                  if name not in classes] * len(classes))  # yapf: disable
    colors = [COLORS.get(name) or next(spare, '#000000') for name in classes]
    figure = Figure((10, 1.3 + 1.2 * len(persons)), layout='constrained')
    axes = figure.subplots(len(persons), 2, squeeze=False, width_ratios=(1, 9))
    step = next((tick for tick in TICKS if length / tick <= 10), length / 10)
    ticks = np.arange(0, length + step / 2, step)
    for (portrait, axis), (number, person) in zip(axes, persons.items()):
        portrait.imshow(person.thumbnail[..., ::-1])
        portrait.set_title(f'person {number}', fontsize=9)
        portrait.axis('off')
        seconds = np.full((len(classes), int(length / width) + 1), np.nan)
        for i, value in person.bins.items():
            if value.sum() > 0:
                seconds[:, i] = value
        # Both edges of each bin
        edges = np.arange(seconds.shape[1] + 1) * width
        tops = np.cumsum(seconds / seconds.sum(0), 0).repeat(2, 1)
        low = np.zeros(tops.shape[1])
        for top, color in zip(tops, colors):
            axis.fill_between(
                edges.repeat(2)[1:-1], low, top, color=color, linewidth=0)
            low = top
        axis.set(
            xlim=(0, length), ylim=(0, 1), yticks=(0, 0.5, 1), xticks=ticks)
        axis.set_yticklabels(('0 %', '50 %', '100 %'), fontsize=8)
        axis.set_xticklabels([_clock(tick, step) for tick in ticks],
                             fontsize=8)
    axis.set_xlabel(
        'time' +
        (f'; {others} more persons are in the tables' if others else ''),
        fontsize=9)
    legend = figure.legend([Patch(color=color) for color in colors],
                           [name[:30] for name in classes],
                           loc='outside lower center',
                           ncols=min(len(classes), 8),
                           frameon=False)
    for text in legend.get_texts():
        # A name may have any letters, and $ is no formula.
        text.set_parse_math(False)
        font = find_font(text.get_text())
        text.set_fontproperties(FontProperties(fname=font or None, size=9))
    return figure


def _clock(seconds: float, step: float) -> str:
    if step < 1:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes}:{rest:02}'
    return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'
