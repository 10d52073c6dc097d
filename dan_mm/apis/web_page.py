# Copyright (c) dan_mm contributors. All rights reserved.
"""The page of `dan-mm web`."""
import glob
import html
import math
import os
import re
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from tempfile import mkdtemp
from typing import Dict, Iterator, List, Optional, Sequence

import cv2
import numpy as np
import torch
from mmengine.visualization import Visualizer

from dan_mm.imaging import prepare_image
from dan_mm.reading import MediaReader
from .annotate import AnnotatedWriter
from .drawing import draw_faces
from .inferencer import SYNTHETIC, FERInferencer, ImageResult
from .media import VIDEOS, is_video

# Gradio would tell its makers of each start.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
try:
    import gradio as gr  # noqa: E402 isort: skip
    from starlette.middleware import Middleware  # noqa: E402 isort: skip
    from .web_guard import WebGuard  # noqa: E402 isort: skip
except ImportError as error:
    raise ImportError(f'Found no gradio ({error}), expected it for the page. '
                      "Install it: pip install 'gradio>=6.31,<7'") from error

INTRO = """# Facial expressions
Give an image or a video: each face in it gets the expression that it shows
most. **What a face shows is not what the person feels.**"""
KEPT = 10  # minutes
PRIVACY = ('Images and videos go to the machine that runs this page and no '
           f'further; it deletes them after about {KEPT} minutes.')
MAX_IMAGE, MAX_VIDEO = 64, 200  # megabytes
MAX_LENGTH = 60  # seconds of a video
MAX_WORK = 300  # seconds that a video may take
MAX_ROWS = 500
# How many requests are under way at once. An image does not wait for videos.
IMAGES_AT_ONCE, VIDEOS_AT_ONCE = 6, 2
SHOWN = 1600  # pixels of the longer side of the image with boxes
SHOWN_VIDEO = 960  # and of the video
SMOOTHING = 0.8
LARGE = 12_500_000  # pixels of an image
MAX_WAIT = 5  # seconds that a large image waits for another one
one_large = threading.Lock()
reader = MediaReader()
CROP = 224
CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
#message p, #message-video p {font-size: 1.25em}
#synthetic {background: #fde68a; border-radius: 8px; padding: 8px 14px}
#synthetic * {color: #422006}
#about {opacity: .75}
#faces .grid-container, #heads .grid-container {padding-top: 2em}
#faces .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(105px, 1fr)) !important}
#heads .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important}
#heads .grid-wrap {max-height: none; min-height: 0; overflow: visible}
#faces .caption-label {max-width: 100%; padding: 2px 6px}
@media (max-width: 600px) {
  #upload, #drawn, #annotated {height: 290px !important}
  #timeline * {font-size: 13px}}
"""


@contextmanager
def at_most_one_large(path: str) -> Iterator[None]:
    """Bound the memory of images that are looked at together."""
    try:
        large = math.prod(reader.read_size(path)) > LARGE
    except (OSError, ValueError):
        # Reading it will say what is wrong.
        large = False
    # Waiting keeps the place of others.
    if large and not one_large.acquire(timeout=MAX_WAIT):
        raise ValueError('there is another large one under way. Try again in '
                         'a minute, or shrink it.')
    try:
        yield
    finally:
        if large:
            one_large.release()


def to_rgb(img: np.ndarray, scale: float = 1.) -> np.ndarray:
    """Turn a BGR image into what Gradio shows."""
    if scale != 1:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        img = cv2.resize(img, None, fx=scale, fy=scale, interpolation=how)
    return cv2.cvtColor(img, cv2.COLOR_BGR2RGB)


def draw_heads(face) -> list:
    """Draw what each head looks at over the face, with captions."""
    crop = to_rgb(face.crop, CROP / max(face.crop.shape[:2]))
    images = [(crop, 'the face')]
    for i, attention in enumerate(face.attention_maps, 1):
        attention = torch.nn.functional.interpolate(
            torch.from_numpy(attention)[None, None],
            crop.shape[:2],
            mode='bicubic')[0]
        overlay = Visualizer.draw_featmap(attention, crop)
        images.append((overlay, f'head {i}'))
    return images


def show_face(faces: list, index: int) -> list:
    """Update the bars and attention maps to those of one face."""
    if not faces:
        return [gr.Label(visible=False), gr.Gallery(visible=False)]
    face = faces[index]
    name = f'Face {index + 1}' if len(faces) > 1 else 'The face'
    if face.attention_maps is None:
        heads = [(to_rgb(face.crop), 'the face')]
        label = f'{name}: this model has no attention heads'
    else:
        heads = draw_heads(face)
        label = f'{name}: where each head looks most (red)'
    return [
        gr.Label(face.scores, label=name, visible=True),
        gr.Gallery(heads, label=label, visible=True)
    ]


def summarize(faces: list) -> str:
    if not faces:
        return ('No face was found. Try an image with a larger face that '
                'looks to the camera.')
    if len(faces) == 1:
        face = faces[0]
        name = re.sub(r'(\W)', r'\\\1', face.expression)
        return (f'This face shows **{name}** '
                f'({face.scores[face.expression]:.0%}).')
    return f'{len(faces)} faces were found. Choose one below.'


def look(inferencer: FERInferencer, path: str) -> tuple:
    """Find the faces of an uploaded image."""
    size = os.path.getsize(path)
    if size > MAX_IMAGE * 2**20:
        raise ValueError(f'it has {size / 2**20:.0f} MB, expected at most '
                         f'{MAX_IMAGE} MB. Shrink it.')
    # Whatever its extension, it is no video.
    [image] = reader.read([(path, False)])
    if image.img is None:
        # The path on this machine is nobody's business.
        name = os.path.basename(path)
        raise ValueError(image.error.replace(path, name))
    img = image.img
    [result] = inferencer(img, attention_maps=True)
    # Copies of a large image would be large.
    img, (scale, _) = prepare_image(img, SHOWN)
    shown = [
        replace(face, bbox=face.bbox * scale) for face in result.faces
        if face.bbox is not None
    ]
    message = result.error or summarize(result.faces)
    return message, to_rgb(draw_faces(img, shown)), result.faces


def answer_image(inferencer: FERInferencer, path: Optional[str]) -> list:
    """Update the page to an uploaded image, or to none."""
    message, drawn, faces = '', None, []
    if path is not None:
        try:
            with at_most_one_large(path):
                message, drawn, faces = look(inferencer, path)
        except Exception as error:
            # Whatever an image does is its own failure.
            message = f'This image cannot be used: {error}'
    crops = [(to_rgb(face.crop), f'{i} {face.expression}')
             for i, face in enumerate(faces, 1)]
    return [
        faces, message,
        gr.Image(drawn, visible=drawn is not None),
        gr.Gallery(crops, selected_index=0, visible=len(faces) > 1),
        *show_face(faces, 0)
    ]


@dataclass
class Span:
    """A time, in seconds, in which a face shows one expression, with its
    probabilities in all frames."""
    track: int
    expression: str
    start: float
    end: float
    scores: List[float]


class Timeline:
    """Who shows what when, in a video."""

    def __init__(self) -> None:
        self.spans: List[Span] = []
        self.last: Dict[int, Span] = {}
        self.time = 0.

    def add(self, result: ImageResult) -> None:
        """Take the faces of the next frame."""
        self.time = result.time
        for face in result.faces:
            name, span = face.expression, self.last.get(face.track)
            if span is None or span.expression != name:
                span = Span(face.track, name, result.time, result.time, [])
                self.last[face.track] = span
                self.spans.append(span)
            span.end = result.time
            span.scores.append(face.scores[name])

    def rows(self) -> List[list]:
        """The rows of the table."""
        return [[
            f'{span.start:.1f} s', f'{span.end:.1f} s',
            str(span.track), span.expression, f'{np.mean(span.scores):.0%}'
        ] for span in self.spans]


def show_video(message: str,
               path: Optional[str] = None,
               rows: Sequence[list] = ()) -> list:
    """Update the page to an annotated video, or to none."""
    return [
        message,
        gr.Video(path, visible=path is not None),
        gr.Dataframe(list(rows[:MAX_ROWS]) or None, visible=bool(rows))
    ]


def answer_video(inferencer: FERInferencer,
                 path: Optional[str]) -> Iterator[list]:
    """Update the page to an uploaded video, while it is looked at."""
    if path is None:
        yield show_video('')
        return
    name = os.path.basename(path)
    if not is_video(path):
        yield show_video(f'The name {name} has no extension of a video, '
                         f'expected one of {", ".join(VIDEOS)}.')
        return
    timeline, notes = Timeline(), []
    begin = shown = time.monotonic()
    # Gradio serves what is there, and deletes it later.
    folder = mkdtemp(dir=os.environ['GRADIO_TEMP_DIR'])
    writer = AnnotatedWriter(folder, [path], [path], SHOWN_VIDEO)
    stream = inferencer.stream_images(path, smoothing=SMOOTHING)
    try:
        with writer, closing(stream):
            for image, result in stream:
                now = time.monotonic()
                if (result.time or 0) > MAX_LENGTH:
                    notes.append(f'Only the first {MAX_LENGTH} s are shown: '
                                 'this page takes no more.')
                    break
                if now - begin > MAX_WORK:
                    notes.append(
                        f'Only the first {timeline.time:.1f} s are shown: it '
                        f'took longer than {MAX_WORK // 60} minutes.')
                    break
                if result.error and not notes:
                    # The path on this machine is nobody's business.
                    notes.append(result.error.replace(path, name))
                writer.write(image, result)
                if result.time is not None:
                    timeline.add(result)
                # Where the visitor has left, Gradio ends it here.
                if now - shown > 1:
                    shown = now
                    done = max(timeline.time / MAX_LENGTH,
                               (image.frame or 0) / (image.frames or math.inf))
                    yield show_video(f'{min(done, 1):.0%} of the video is '
                                     'done …')
    except Exception as error:
        # Whatever a video does is its own failure.
        reason = str(error).replace(path, name)
        notes.append(f'This video cannot be used: {reason}')
    notes += [
        error.replace(path, name).replace(os.path.join(folder, ''), '')
        for error in writer.errors
    ]
    written = next(glob.iglob(f'{folder}/*.mp4'), None)
    if written:
        notes.insert(0, summarize_video(timeline))
    if timeline.spans[MAX_ROWS:]:
        notes.append(f'The table has the first {MAX_ROWS} rows of '
                     f'{len(timeline.spans)}.')
    yield show_video(' '.join(notes), written, timeline.rows())


def summarize_video(timeline: Timeline) -> str:
    number = len(timeline.last)
    if not number:
        return 'No face was found in the video.'
    faces = 'One face was' if number == 1 else f'{number} faces were'
    return f'{faces} followed for {timeline.time:.1f} s.'


def build(inferencer: FERInferencer) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(
            analytics_enabled=False,
            title='Facial expressions',
            delete_cache=(60, 60 * KEPT)) as page:
        gr.Markdown(INTRO)
        if inferencer.synthetic:
            gr.Markdown(f'**{SYNTHETIC}**', elem_id='synthetic')
        with gr.Tab('Image'):
            add_images(inferencer)
        with gr.Tab('Video', elem_id='videos'):
            add_videos(inferencer)
        # A checkpoint may say anything.
        gr.HTML(html.escape(f'{inferencer.about} {PRIVACY}'), elem_id='about')
    return page


def add_images(inferencer: FERInferencer) -> None:
    """Add the part of the page for images."""
    faces = gr.State([], time_to_live=60 * KEPT)
    message = gr.Markdown(elem_id='message')
    with gr.Row():
        upload = gr.Image(
            label='Image',
            sources=['upload', 'webcam'],
            height=400,
            buttons=[],
            elem_id='upload')
        drawn = gr.Image(
            label='Faces found',
            format='jpeg',
            height=400,
            buttons=['fullscreen'],
            interactive=False,
            visible=False,
            elem_id='drawn')
    crops = gr.Gallery(
        label='Faces',
        height=230,
        allow_preview=False,
        buttons=[],
        interactive=False,
        visible=False,
        elem_id='faces')
    with gr.Row():
        bars = gr.Label(visible=False, elem_id='bars')
        heads = gr.Gallery(
            buttons=[], interactive=False, visible=False, elem_id='heads')

    def choose(found: list, event: gr.SelectData) -> list:
        if event.index not in range(len(found)):
            gr.Warning('This image was deleted. Give it again.')
            return show_face([], 0)
        return show_face(found, event.index)

    upload.input(
        lambda file: answer_image(inferencer, file and file['path']),
        upload,
        [faces, message, drawn, crops, bars, heads],
        # Gradio would open the file, and fail in its own words.
        preprocess=False,
        show_progress_on=upload,
        concurrency_limit=IMAGES_AT_ONCE,
        api_visibility='private').then(
            # Instead of the browser's sign for a broken image
            None,
            [drawn, upload],
            upload,
            js='(drawn, upload) => drawn && upload')
    crops.select(choose, faces, [bars, heads], api_visibility='private')


def add_videos(inferencer: FERInferencer) -> None:
    """Add the part of the page for videos."""
    message = gr.Markdown(
        f'The first {MAX_LENGTH} s are looked at, of a video of at most '
        f'{MAX_VIDEO} MB.',
        elem_id='message-video')
    # Gradio's own component for videos complains about what the browser can
    # not play, such as HEVC.
    upload = gr.File(
        label='Video',
        file_types=['video', *VIDEOS],
        height=140,
        elem_id='upload-video')
    annotated = gr.Video(
        label='Faces found',
        height=480,
        buttons=['download'],
        interactive=False,
        visible=False,
        elem_id='annotated')
    table = gr.Dataframe(
        headers=['from', 'to', 'face', 'expression', 'score'],
        datatype='str',
        type='array',
        column_widths=['16%', '16%', '17%', '32%', '19%'],
        interactive=False,
        visible=False,
        elem_id='timeline')

    def show(file: Optional[dict]) -> Iterator[list]:
        yield from answer_video(inferencer, file and file['path'])

    working = upload.upload(
        show,
        upload, [message, annotated, table],
        preprocess=False,
        show_progress='hidden',
        concurrency_limit=VIDEOS_AT_ONCE,
        api_visibility='private')
    upload.clear(
        lambda: show_video(''),
        None, [message, annotated, table],
        cancels=working,
        api_visibility='private')


def launch(page: gr.Blocks, host: str, port: Optional[int]) -> str:
    """Serve the page, in a thread. Files are in the folder that the
    environment variable ``GRADIO_TEMP_DIR`` names."""
    fonts = ['system-ui', 'sans-serif']
    guard = Middleware(
        WebGuard,
        host=host,
        folder=os.environ['GRADIO_TEMP_DIR'],
        max_file=MAX_VIDEO * 2**20)
    _, url, _ = page.launch(
        # IPv6
        server_name=f'[{host}]' if ':' in host else host,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=f'{MAX_VIDEO}mb',
        app_kwargs=dict(middleware=[guard]),
        theme=gr.themes.Default(font=fonts, font_mono=fonts),
        css=CSS,
        quiet=True,
        prevent_thread_lock=True)
    return url
