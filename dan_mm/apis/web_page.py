# Copyright (c) dan_mm contributors. All rights reserved.
"""The page of `dan-mm web`."""
import html
import os
import re
from typing import Optional

import cv2
import numpy as np
import torch
from mmengine.visualization import Visualizer
from PIL import UnidentifiedImageError

from dan_mm.datasets import LoadCheckedImage
from .drawing import draw_faces
from .inferencer import FERInferencer

# Gradio would tell its makers of each start.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
try:
    import gradio as gr  # noqa: E402 isort: skip
except ImportError as error:
    raise ImportError(f'Found no gradio ({error}), expected it for the page. '
                      "Install it: pip install 'gradio>=6.31,<7'") from error

INTRO = """# Facial expressions
Give a picture: each face in it gets the expression that it shows most.
**What a face shows is not what the person feels.**"""
KEPT = 10  # minutes
PRIVACY = ('Pictures go to the machine that runs this page and no further; '
           f'it deletes them after about {KEPT} minutes.')
MAX_FILE = 64  # megabytes
SHOWN = 1600  # pixels of the longer side of the picture with boxes
CROP = 224
CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
#message p {font-size: 1.25em}
#about {opacity: .75}
#faces .grid-container, #heads .grid-container {padding-top: 2em}
#faces .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(105px, 1fr)) !important}
#heads .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important}
#heads .grid-wrap {max-height: none; min-height: 0; overflow: visible}
#faces .caption-label {max-width: 100%; padding: 2px 6px}
@media (max-width: 600px) {
  #upload, #drawn {height: 290px !important}}
"""


def read(path: str) -> np.ndarray:
    """Read an uploaded file as a BGR picture.

    Raises:
        ValueError: If that is not possible, with a sentence for the page.
    """
    try:
        return LoadCheckedImage()(dict(img_path=path))['img']
    except (OSError, ValueError) as error:
        # The message itself is for who keeps a data set.
        reason = error.__cause__
        if reason is None or isinstance(reason, UnidentifiedImageError):
            reason = 'it is empty or in no known format'
        raise ValueError(f'This file can not be read as a picture: {reason}. '
                         'Try another, such as a JPEG or PNG.') from error


def to_rgb(picture: np.ndarray, scale: float = 1.) -> np.ndarray:
    """Turn a BGR picture into what Gradio shows."""
    if scale != 1:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(
            picture, None, fx=scale, fy=scale, interpolation=how)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def draw_heads(face) -> list:
    """Draw what each head looks at over the face, with captions."""
    crop = to_rgb(face.crop, CROP / max(face.crop.shape[:2]))
    pictures = [(crop, 'the face')]
    for i, attention in enumerate(face.attention_maps, 1):
        attention = torch.nn.functional.interpolate(
            torch.from_numpy(attention)[None, None],
            crop.shape[:2],
            mode='bicubic')[0]
        overlay = Visualizer.draw_featmap(attention, crop)
        pictures.append((overlay, f'head {i}'))
    return pictures


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
        return ('No face was found. Try a picture with a larger face that '
                'looks to the camera.')
    if len(faces) == 1:
        face = faces[0]
        name = re.sub(r'(\W)', r'\\\1', face.expression)
        return (f'This face shows **{name}** '
                f'({face.scores[face.expression]:.0%}).')
    return f'{len(faces)} faces were found. Choose one below.'


def answer(inferencer: FERInferencer, path: Optional[str]) -> list:
    """Update the whole page to an uploaded file, or to none."""
    message, drawn, faces = '', None, []
    if path is not None:
        try:
            picture = read(path)
        except ValueError as error:
            message = str(error)
        else:
            [result] = inferencer(picture, attention_maps=True)
            faces = result.faces
            message = result.error or summarize(faces)
            scale = min(1., SHOWN / max(picture.shape[:2]))
            drawn = to_rgb(draw_faces(picture, faces), scale)
    crops = [(to_rgb(face.crop), f'{i} {face.expression}')
             for i, face in enumerate(faces, 1)]
    return [
        faces, message,
        gr.Image(drawn, visible=drawn is not None),
        gr.Gallery(crops, selected_index=0, visible=len(faces) > 1),
        *show_face(faces, 0)
    ]


def build(inferencer: FERInferencer) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(
            analytics_enabled=False,
            title='Facial expressions',
            delete_cache=(60, 60 * KEPT)) as page:
        gr.Markdown(INTRO)
        faces = gr.State([], time_to_live=60 * KEPT)
        message = gr.Markdown(elem_id='message')
        with gr.Row():
            upload = gr.Image(
                label='Picture',
                sources=['upload', 'webcam'],
                type='filepath',
                image_mode=None,
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
        # A checkpoint may say anything.
        gr.HTML(html.escape(f'{inferencer.about} {PRIVACY}'), elem_id='about')

        # Gradio would open the file, and fail in its own words.
        upload.preprocess = lambda payload: payload and payload.path

        def choose(found: list, event: gr.SelectData) -> list:
            if not found:
                gr.Warning('This picture was deleted. Give it again.')
            return show_face(found, event.index)

        upload.input(
            lambda path: answer(inferencer, path),
            upload, [faces, message, drawn, crops, bars, heads],
            show_progress_on=upload,
            concurrency_limit=1,
            api_visibility='private').then(
                # Instead of the browser's sign for a broken picture
                None,
                [drawn, upload],
                upload,
                js='(drawn, upload) => drawn && upload')
        crops.select(choose, faces, [bars, heads], api_visibility='private')
    return page


def launch(page: gr.Blocks, host: str, port: Optional[int]) -> str:
    """Serve the page, in a thread.

    Returns:
        str: Its URL.
    """
    fonts = ['system-ui', 'sans-serif']
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=f'{MAX_FILE}mb',
        theme=gr.themes.Default(font=fonts, font_mono=fonts),
        css=CSS,
        quiet=True,
        prevent_thread_lock=True)
    return url
