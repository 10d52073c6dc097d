# Copyright (c) dan_mm contributors. All rights reserved.
"""The page in a browser, with a model that is none and with a real one."""
import json
import os
import shutil
import time
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, draw_face
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image

from dan_mm import apis, cli
from dan_mm.apis import Face, FaceResult, FERInferencer, ImageResult, media
from dan_mm.datasets import FERPlus
from dan_mm.reading import MediaReader

pytest.importorskip('gradio', reason="needs gradio: pip install -e '.[web]'")
web_page = pytest.importorskip('dan_mm.apis.web_page')
SELENIUM = 'needs selenium: pip install selenium'
webdriver = pytest.importorskip('selenium.webdriver', reason=SELENIUM)
common = pytest.importorskip('selenium.common', reason=SELENIUM)
support = pytest.importorskip(
    'selenium.webdriver.support.wait', reason=SELENIUM)

CLASSES = FERPlus.METAINFO['classes']
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
DRIVER = shutil.which('chromedriver')
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not DRIVER,
    reason='needs a browser: apt-get install chromium chromium-driver')


class Fake:
    """Finds a face in each square of a wide image, of the class of its
    number, and none in an image of one colour."""
    about = 'Trained on nothing, for no use.'
    synthetic = False

    def __call__(self, img, attention_maps=True):
        assert img.dtype == np.uint8 and attention_maps
        side, faces = len(img), []
        for i in range(img.shape[1] // side if img.std() > 1 else 0):
            scores = np.full(len(CLASSES), 0.02)
            scores[(i + 1) % len(CLASSES)] = 0.86
            faces.append(
                FaceResult(
                    dict(zip(CLASSES, scores.tolist())),
                    bbox=np.float32([i * side, 0, (i + 1) * side, side]),
                    crop=img[:, i * side:(i + 1) * side],
                    attention_maps=np.random.rand(4, 7, 7).astype('f')))
        return [ImageResult(faces=faces)]

    def stream_images(self, path, smoothing):
        for image in media.read([path], MediaReader()):
            result = ImageResult(path, image.frame, image.time, [],
                                 image.error)
            if image.img is not None:
                result.faces = self(image.img)[0].faces
            for i, face in enumerate(result.faces):
                face.track = i
                if image.frame >= 25:
                    face.scores['fear'] = 0.9
            yield image, result


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve the page of a model and get its URL."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'uploads'))
    monkeypatch.setenv('no_proxy', '*')
    pages = []

    def start(inferencer):
        pages.append(web_page.build(inferencer))
        return web_page.launch(pages[-1], '127.0.0.1', None)

    yield start
    for page in pages:
        page.close(verbose=False)


class Browser(webdriver.Chrome):

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
                'headless=new', 'no-sandbox', 'disable-dev-shm-usage',
                'window-size=1280,900', 'use-fake-device-for-media-stream',
                'use-fake-ui-for-media-stream',
                'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'):
            options.add_argument(f'--{argument}')
        options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
        super().__init__(options, webdriver.ChromeService(DRIVER))

    def all(self, selector):
        return self.find_elements('css selector', selector)

    def wait(self, condition):
        """Wait for something to be true and get it."""
        ignored = IndexError, common.StaleElementReferenceException
        return support.WebDriverWait(
            self, 60, 0.1,
            ignored_exceptions=ignored).until(lambda _: condition())

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def give(self, path, upload='#upload', message='#message'):
        """Upload a file and get the answer in words."""
        before = self.texts(message)
        self.wait(lambda: self.all(f'{upload} input[type=file]'))[0].send_keys(
            str(path))
        return self.wait(
            lambda: self.texts(message) != before and self.texts(message)[0])

    def hosts(self):
        """The hosts that were asked for anything so far."""
        urls = []
        for entry in self.get_log('performance'):
            message = json.loads(entry['message'])['message']
            params = message['params']
            if message['method'] == 'Network.requestWillBeSent':
                urls.append(params['request']['url'])
            elif message['method'] == 'Network.webSocketCreated':
                urls.append(params['url'])
        return {
            urlsplit(url).hostname
            for url in urls if urlsplit(url).scheme not in ('data', 'blob')
        }


@pytest.fixture(scope='module')
def chromium():
    browser = Browser()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium):
    chromium.get_log('performance')
    yield chromium
    chromium.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def photograph(folder, number=1):
    """The path of an image of faces beside each other."""
    path = f'{SHARED}/data/faces_london/001_happiness.jpg'
    if not os.path.exists(path):
        path = str(folder / 'face.png')
        cv2.imwrite(path, draw_face(0, 240))
    if number > 1:
        face = cv2.resize(cv2.imread(path), (240, 240))
        path = str(folder / 'faces.png')
        cv2.imwrite(path, np.hstack([face] * number))
    return path


def write_video(path, frames):
    """Write a video of 25 frames a second, and get its path."""
    video = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, frames[0].shape[1::-1])
    assert video.isOpened()
    for frame in frames:
        video.write(frame)
    video.release()
    return str(path)


@needs_browser
def test_page(serve, browser, tmp_path):
    browser.get(serve(Fake()))
    about = browser.wait(lambda: browser.texts('#about')[0])
    assert about.startswith(Fake.about) and 'no further' in about
    assert 'not what the person feels' in browser.texts('body')[0]

    answer = browser.give(photograph(tmp_path))
    assert answer == 'This face shows happiness (86%).'
    heads = browser.wait(lambda: browser.texts('#heads .caption-label'))
    assert heads == ['the face', 'head 1', 'head 2', 'head 3', 'head 4']
    bars = browser.texts('#bars .confidence-set')
    assert len(bars) == 8 and bars[0].split() == ['happiness', '86%']
    assert not browser.texts('#faces .caption-label')

    answer = browser.give(photograph(tmp_path, 9))
    assert answer == '9 faces were found. Choose one below.'
    faces = browser.wait(lambda: browser.all('#faces .thumbnail-item'))
    assert [face.text for face in faces][7:] == ['8 neutral', '9 happiness']
    faces[1].click()
    browser.wait(lambda: browser.texts('#bars label') == ['Face 2'])
    assert browser.texts('#bars h2') == ['surprise']
    assert browser.texts('#heads label')[0].startswith('Face 2: where')
    widths = browser.wait(lambda: browser.execute_script(
        'return [...document.images].every(i => i.complete) &&'
        '[...document.images].map(i => i.naturalWidth)'))
    # What was uploaded, the boxes, and the galleries
    assert len(widths) == 2 + 9 + 5 and all(widths)
    assert browser.save_screenshot(str(tmp_path / 'page.png'))

    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    answer = browser.give(tmp_path / 'broken.jpg')
    assert 'This image cannot be used' in answer and 'decoded' in answer
    browser.wait(lambda: not browser.all('#upload img'))
    Image.new('RGB', (64, 64)).save(tmp_path / 'black.png')
    answer = browser.give(tmp_path / 'black.png')
    assert answer.startswith('No face was found. Try')
    for selector in '#faces', '#bars', '#heads':
        assert not any(item.is_displayed() for item in browser.all(selector))
    browser.all('#upload button[aria-label="Remove Image"]')[0].click()
    browser.wait(lambda: browser.texts('#message') == [''])

    assert browser.hosts() == {'127.0.0.1'}


@needs_browser
def test_video(serve, browser, tmp_path):
    frame = cv2.resize(cv2.imread(photograph(tmp_path)), (240, 240))
    two = np.hstack([frame, frame])
    path = write_video(tmp_path / 'two.mp4', [two] * 50)
    browser.get(serve(Fake()))
    browser.wait(lambda: browser.all('button[role=tab]'))[1].click()
    about = browser.wait(lambda: browser.texts('#message-video')[0])
    assert 'first 60 s' in about and '200 MB' in about
    give = dict(upload='#upload-video', message='#message-video')
    browser.give(path, **give)
    answer = browser.wait(lambda: [
        text for text in browser.texts('#message-video') if 'done' not in text
    ])
    assert answer == ['2 faces were followed for 2.0 s.']
    # The browser plays what it got.
    seconds = browser.wait(lambda: browser.execute_script(
        'return document.querySelector("#annotated video")?.duration'))
    assert seconds == pytest.approx(2, abs=0.2)
    size = browser.execute_script(
        'let video = document.querySelector("#annotated video");'
        'return [video.videoWidth, video.videoHeight, video.error]')
    assert size == [480, 240, None]
    browser.execute_script(
        'document.querySelector("#timeline").scrollIntoView()')
    cells = browser.wait(
        lambda: list(filter(None, browser.texts('#timeline [role=gridcell]'))))
    assert cells[:5] == ['0.0 s', '1.0 s', '0', 'happiness', '86%']
    assert cells[-5:] == ['1.0 s', '2.0 s', '1', 'fear', '90%']
    assert len(cells) == 20
    assert browser.save_screenshot(str(tmp_path / 'video.png'))

    browser.all('#upload-video button[aria-label=Clear]')[0].click()
    browser.wait(lambda: browser.texts('#message-video') == [''])
    assert not browser.all('#annotated video')
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    answer = browser.give(tmp_path / 'broken.mp4', **give)
    assert answer.startswith('The video broken.mp4 cannot be opened')
    assert not browser.all('#annotated video')
    assert browser.hosts() == {'127.0.0.1'}


def test_images_that_fail(tmp_path, monkeypatch):
    # Thinner than a pixel when it is shown
    strip = np.zeros((10, 40000, 3), np.uint8)
    strip[:, :100] = 255
    cv2.imwrite(str(tmp_path / 'strip.png'), strip)

    class First(Fake):

        def __call__(self, img, **kwargs):
            return super().__call__(img[:, :200], **kwargs)

    faces, message, drawn, *_ = web_page.answer_image(
        First(), str(tmp_path / 'strip.png'))
    assert len(faces) == 20 and drawn.visible

    def fail(*args, **kwargs):
        raise AssertionError('it failed')

    monkeypatch.setattr(Fake, '__call__', fail)
    faces, message, drawn, *_ = web_page.answer_image(
        Fake(), str(tmp_path / 'strip.png'))
    assert message == 'This image cannot be used: it failed'
    assert not faces and not drawn.visible


def test_large_images_are_looked_at_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, 'LARGE', 64 * 64 - 1)
    monkeypatch.setattr(web_page, 'MAX_WAIT', 0.1)
    paths = []
    for side in 63, 64:
        paths.append(str(tmp_path / f'{side}.png'))
        Image.new('RGB', (side, side)).save(paths[-1])
    small, large = paths
    other = {}

    class Slow(Fake):

        def __call__(self, img, attention_maps):
            if len(img) == 64 and not other:
                # Meanwhile
                for path in paths:
                    other[path] = web_page.answer_image(self, path)[1]
            return super().__call__(img, attention_maps)

    for _ in range(2):
        message = web_page.answer_image(Slow(), large)[1]
        assert message.startswith('No face was found')
    assert other[small].startswith('No face was found')
    assert 'another large one under way' in other[large]


def test_limits_of_videos(tmp_path, monkeypatch):
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    frames = [np.full((64, 64, 3), i, np.uint8) for i in range(50)]
    frames[0][:32] = 255
    path = write_video(tmp_path / 'long.mp4', frames)
    monkeypatch.setattr(web_page, 'MAX_LENGTH', 1)
    *_, (message, _, _) = web_page.answer_video(Fake(), path)
    assert 'first 1 s are shown' in message and 'followed for 1.0 s' in message
    monkeypatch.setattr(web_page, 'MAX_LENGTH', 60)
    monkeypatch.setattr(web_page, 'MAX_WORK', -1)
    *_, (message, _, _) = web_page.answer_video(Fake(), path)
    assert 'first 0.0 s are shown' in message
    monkeypatch.setattr(web_page, 'MAX_WORK', 60)
    monkeypatch.setattr(web_page, 'MAX_ROWS', 1)
    *_, (message, _, table) = web_page.answer_video(Fake(), path)
    assert 'first 1 rows' in message and len(table.value['data']) == 1
    path = str(tmp_path / 'a.doc')
    [[message, video, _]] = web_page.answer_video(Fake(), path)
    assert 'a.doc has no extension of a video' in message and not video.value


def test_timeline():
    timeline = web_page.Timeline()
    frames = [[('anger', 0)], [('anger', 0), ('fear', 1)], [('fear', 1)],
              [('sadness', 0), ('fear', 1)], [('anger', 0)]]
    for number, faces in enumerate(frames):
        timeline.add(
            ImageResult(
                time=number / 2,
                faces=[
                    FaceResult({name: 0.5 + number / 10}, track=track)
                    for name, track in faces
                ]))
    assert timeline.rows() == [['0.0 s', '0.5 s', '0', 'anger', '55%'],
                               ['0.5 s', '1.5 s', '1', 'fear', '70%'],
                               ['1.5 s', '1.5 s', '0', 'sadness', '80%'],
                               ['2.0 s', '2.0 s', '0', 'anger', '90%']]
    assert timeline.time == 2


@needs_browser
def test_page_on_a_phone(serve, browser, tmp_path):
    size = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    frame = cv2.resize(cv2.imread(photograph(tmp_path)), (240, 240))
    path = write_video(tmp_path / 'one.mp4', [frame] * 5)
    browser.get(serve(Fake()))
    browser.give(photograph(tmp_path, 3))
    browser.wait(lambda: browser.texts('#heads .caption-label'))

    def width():
        return browser.execute_script(
            'return document.documentElement.scrollWidth')

    assert width() == 390
    browser.all('button[role=tab]')[1].click()
    browser.give(path, '#upload-video', '#message-video')
    browser.wait(lambda: browser.all('#timeline [role=gridcell]'))
    assert browser.save_screenshot(str(tmp_path / 'phone.png'))
    assert width() == 390


@needs_browser
def test_camera(serve, browser):
    browser.get(serve(Fake()))
    for button in ('[aria-label="Capture from camera"]', ':has(.icon-wrap)',
                   '[aria-label="capture photo"]'):
        # The last appears before the camera is on.
        browser.wait(lambda: [
            item for item in browser.all(f'#upload button{button}')
            if item.is_displayed()
        ])[0].click()
        time.sleep(2)
    # The test image of the browser is 4:3.
    answer = browser.wait(lambda: browser.texts('#message')[0])
    assert answer == 'This face shows happiness (86%).'


@needs_browser
def test_synthetic_faces_only(serve, browser):
    browser.get(serve(Fake()))
    browser.wait(lambda: browser.texts('#about'))
    assert not browser.all('#synthetic')
    fake = Fake()
    fake.synthetic = True
    browser.get(serve(fake))
    notice = browser.wait(lambda: browser.texts('#synthetic')[0])
    assert 'synthetic faces only' in notice


@pytest.mark.slow
@needs_browser
def test_page_of_a_real_model(serve, browser, tmp_path):
    path = photograph(tmp_path)
    cfg = Config.fromfile(f'{ROOT}/configs/dan_ferplus.py')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=dict(cfg.data_preprocessor)))
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(classes=CLASSES)),
            state_dict=model.state_dict()), tmp_path / 'dan.pth')

    def detector(images):
        size = len(images[0])
        landmarks = np.float32([[.35, .4], [.65, .4], [.5, .6], [.4, .75],
                                [.6, .75]])
        return [[Face(np.float32([0, 0, size, size]), 0.9, size * landmarks)]]

    browser.get(
        serve(
            FERInferencer(
                tmp_path / 'dan.pth',
                config=f'{ROOT}/configs/dan_ferplus.py',
                detector=detector,
                device='cpu')))
    answer = browser.give(path)
    assert answer.split()[3] in CLASSES
    browser.wait(lambda: len(browser.all('#heads .thumbnail-item')) == 5)


def test_a_model_without_heads():
    crop = np.zeros((8, 8, 3), np.uint8)
    face = FaceResult(dict(anger=1.), crop=crop)
    bars, heads = web_page.show_face([face, face], 1)
    assert bars.label == 'Face 2' and len(heads.value) == 1
    assert heads.label == 'Face 2: this model has no attention heads'


@pytest.mark.filterwarnings('ignore:Image size')
def test_refused_images(tmp_path, monkeypatch):
    path = tmp_path / 'file.jpg'
    cv2.imwrite(str(path), draw_face(0, 240))
    whole = path.read_bytes()
    for content, words in [(b'', 'empty file'), (b'<svg/>', 'none of AVIF'),
                           (whole[:len(whole) // 2], 'truncated')]:
        path.write_bytes(content)
        _, message, drawn, *_ = web_page.answer_image(Fake(), str(path))
        assert message.startswith('This image cannot be used: The image file')
        assert words in message and drawn.value is None
    path.write_bytes(whole)
    monkeypatch.setattr(web_page, 'MAX_IMAGE', len(whole) / 2**21)
    message = web_page.answer_image(Fake(), str(path))[1]
    assert 'MB, expected at most' in message


def test_a_video_that_fails(tmp_path, monkeypatch):
    """Whatever raises it, and without a path of this machine."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    path = write_video(tmp_path / 'a.mp4', [np.zeros((64, 64, 3), 'u1')] * 3)
    monkeypatch.setattr(Fake, '__call__', lambda *_: 1 / 0)
    *_, (message, video, _) = web_page.answer_video(Fake(), path)
    assert 'This video cannot be used: division by zero' in message
    assert not video.value and str(tmp_path) not in message
    assert not list(tmp_path.rglob('*.partial*'))


def test_command(monkeypatch, capsys):
    folders = []

    class Page:

        def launch(self, **options):
            folders.append(os.environ['GRADIO_TEMP_DIR'])
            assert os.path.isdir(folders[-1])
            assert not options['share']
            return None, f"http://{options['server_name']}/", None

        def block_thread(self):
            """Not here."""

    monkeypatch.setattr(apis, 'FERInferencer',
                        lambda model, config, device: lambda *args: [])
    monkeypatch.setattr(web_page, 'build', lambda inferencer: Page())
    monkeypatch.setattr(cli.web.signal, 'signal', lambda *_: None)
    for name in 'GRADIO_TEMP_DIR', 'no_proxy':
        monkeypatch.setenv(name, '')

    def run(*options):
        assert cli.main(['web', 'model', *options]) == 0
        return ''.join(capsys.readouterr())

    output = run()
    assert 'http://127.0.0.1/' in output and 'Warning' not in output
    assert 'Warning' not in run('--host', 'localhost')
    assert 'Warning: --host got 0.0.0.0, exp' in run('--host', '0.0.0.0')
    assert len(folders) == 3 and not any(map(os.path.exists, folders))

    def refuse(model, config, device):
        raise ValueError('no such model')

    monkeypatch.setattr(apis, 'FERInferencer', refuse)
    with pytest.raises(SystemExit, match='no such model'):
        run()
