# Copyright (c) dan_mm contributors. All rights reserved.
"""The server of `dan-mm serve`: images in, JSON out."""
import asyncio
import logging
import os
import time
from concurrent.futures import Future
from typing import Dict, List, NamedTuple, Optional, Tuple

from dan_mm.errors import describe, list_some
from dan_mm.version import __version__
from .batcher import Batcher
from .inferencer import SYNTHETIC, FERInferencer, ImageResult, printable

try:
    import anyio
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi_offline import FastAPIOffline
    from prometheus_client import (CollectorRegistry, Counter, Gauge,
                                   Histogram, ProcessCollector, exposition)
    from pydantic import BaseModel, Field
    from python_multipart.exceptions import FormParserError
    from starlette.datastructures import Headers, MutableHeaders, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from .web_guard import OriginGuard
except ImportError as error:
    raise ImportError(
        f'The server lacks a package ({error}). Run `pip install fastapi '
        'fastapi-offline prometheus-client python-multipart uvicorn`.'
    ) from error

MAX_FILES = 16  # of a request
MAX_NAME = 100  # characters of the name of a file
BODY_SECONDS = 10  # in which a request must arrive
# In which a connection must send the head of a request, and take its answer
IDLE_SECONDS = 20
# In which a client that is refused reads why
DRAIN_SECONDS = 2
MAX_CONNECTIONS = 512
RAW = ('application/octet-stream', 'application/x-www-form-urlencoded', '')
logger = logging.getLogger('dan_mm')


class FaceAnswer(BaseModel):
    """A face: see :class:`dan_mm.apis.FaceResult`."""
    expression: str = Field(description='the class with the highest score')
    scores: Dict[str,
                 float] = Field(description='the probability of each class')
    bbox: Optional[List[float]] = Field(
        None, description='left, top, right, bottom in pixels')
    score: Optional[float] = Field(
        None, description='how sure the detector is, in [0, 1]')
    keypoints: Optional[List[List[float]]] = Field(
        None,
        description='left eye, right eye, nose tip, left and right corner of '
        'the mouth, x and y in pixels')
    landmarks_plausible: Optional[bool] = Field(
        None, description='false: the scores mean little')
    embedding: Optional[List[float]] = Field(
        None, description='the features before the classifier, on request')


class ImageAnswer(BaseModel):
    """An image."""
    name: str = Field(description='the name of the file in the request')
    faces: List[FaceAnswer] = Field(
        description='those that the detector is most sure of first')
    error: Optional[str] = Field(
        None, description='what is wrong with the image or a face of it')


class Answer(BaseModel):
    """The images of a request, in its order."""
    images: List[ImageAnswer]


class ErrorAnswer(BaseModel):
    """What was found, what was expected and what to do."""
    error: str


class HealthAnswer(BaseModel):
    """The server can answer."""
    status: str
    version: str
    classes: List[str]
    device: str
    about: str = Field(description='what the model was trained on')


class Limits(NamedTuple):
    """What a request may take.

    Args:
        max_body (int): Bytes of a request. Defaults to 32 MiB.
        max_requests (int): How many requests are under way at once; the next
            one is refused. Defaults to 64.
        timeout (float): In how many seconds a request is answered once it has
            arrived. Defaults to 30.
    """
    max_body: int = 2**25
    max_requests: int = 64
    timeout: float = 30


class Metrics:
    """What is counted, for Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory, processor time and open files
        ProcessCollector(registry=registry)
        self.requests = Counter(
            'dan_mm_requests',
            'Requests by path and status', ['path', 'status'],
            registry=registry)
        self.under_way = Gauge(
            'dan_mm_requests_under_way',
            'Requests for predictions that are under way',
            registry=registry)
        self.seconds = Histogram(
            'dan_mm_request_seconds',
            'Time of requests for predictions',
            registry=registry,
            buckets=(.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30))
        self.images = Counter(
            'dan_mm_images',
            'Images by what became of them', ['outcome'],
            registry=registry)
        self.faces = Counter(
            'dan_mm_faces', 'Faces that were found', registry=registry)
        self.batches = Histogram(
            'dan_mm_batch_images',
            'Images that shared a batch',
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64))

    def add_batch(self, results: List[ImageResult]) -> None:
        """Count the images of a batch."""
        self.batches.observe(len(results))
        self.faces.inc(sum(len(result.faces) for result in results))


class Connection(H11Protocol):
    """A connection that is ended if it keeps the server waiting: uvicorn
    bounds the time between requests alone."""
    _end: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._end.cancel()
        super().connection_lost(error)

    def _wait(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(IDLE_SECONDS, self._abort_after,
                                         self.cycle)

    def _abort_after(self, answered) -> None:
        # Without another request since then
        if self.cycle is answered:
            self.transport.abort()


class Gate(OriginGuard):
    """ASGI middleware that bounds how many predictions are under way, and
    counts requests. What goes wrong is answered as JSON.

    Args:
        app (ASGIApp): The application.
        host (str): The address that it listens at, or its name.
        limits (Limits): The limits.
        metrics (Metrics): Where to count.
    """

    def __init__(self, app: ASGIApp, host: str, limits: Limits,
                 metrics: Metrics) -> None:
        super().__init__(host)
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive,
                       send: Send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        predicts = scope['path'] == '/predict' and scope['method'] == 'POST'
        begin = time.monotonic()
        try:
            self.check_origin(scope)
            await (self._predict if predicts else self.app)(scope,
                                                            answer.receive,
                                                            answer.send)
        except HTTPException as refusal:
            await refuse(refusal)(scope, receive, answer.send)
        except asyncio.CancelledError:
            # The server stops, and has waited for this request.
            if answer.status:
                raise
            answer.complete = True
            stopping = HTTPException(
                503, 'The server is stopping. Try again in a minute.')
            await refuse(stopping)(scope, receive, answer.send)
        finally:
            known = predicts or scope['path'] in ('/health', '/metrics')
            path = scope['path'] if known else 'other'
            self.metrics.requests.labels(path, answer.status).inc()
            if predicts:
                self.metrics.seconds.observe(time.monotonic() - begin)

    async def _predict(self, scope: Scope, receive: Receive,
                       send: Send) -> None:
        most = self.limits.max_requests
        if self.under_way == most:
            raise HTTPException(
                503, f'There are {most} requests under way, expected fewer '
                'before the next one. Try again in a second.')
        self.under_way += 1
        self.metrics.under_way.inc()
        try:
            await self.app(scope, receive, send)
        finally:
            self.under_way -= 1
            self.metrics.under_way.dec()


class _Answer:
    """The answer to a request. A client that is refused before it has sent
    everything gets time to read why: the connection would be reset."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.status = 0
        # Whether all of the request has come
        self.complete = (
            headers.get('content-length', '0') == '0'
            and 'transfer-encoding' not in headers)
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        self.complete = not message.get('more_body', False)
        return message

    async def send(self, message: Message) -> None:
        if message['type'] == 'http.response.start':
            self.status = message['status']
            if not self.complete:
                MutableHeaders(scope=message)['Connection'] = 'close'
        elif not self.complete and not message.get('more_body'):
            await self._send(dict(message, more_body=True))
            with anyio.move_on_after(DRAIN_SECONDS):
                while not self.complete:
                    await self.receive()
            message = dict(type='http.response.body')
        await self._send(message)


def refuse(error: HTTPException) -> JSONResponse:
    """Make an answer of an error."""
    headers = dict(error.headers or {})
    if error.status_code == 503:
        headers['Retry-After'] = '1'
    return JSONResponse(
        dict(error=error.detail), error.status_code, headers=headers)


def build_app(inferencer: FERInferencer,
              host: str = '127.0.0.1',
              limits: Limits = Limits()) -> FastAPI:
    """Build the application.

    Args:
        inferencer (FERInferencer): Who answers.
        host (str): The address that it listens at, or its name: requests to
            others are refused. Defaults to '127.0.0.1'.
        limits (Limits): What a request may take.

    Returns:
        FastAPI: The application, for uvicorn with ``http=Connection``.
    """
    metrics = Metrics()
    batcher = Batcher(
        inferencer, os.cpu_count() or 1, observe=metrics.add_batch)
    about = inferencer.about + (f' {SYNTHETIC}'
                                if inferencer.synthetic else '')
    app = FastAPIOffline(
        title='dan_mm',
        version=__version__,
        description='Facial expressions of images. What a face shows is not '
        f'what the person feels. {about}',
        redoc_url=None,
        # It would send the description to its makers.
        swagger_ui_parameters=dict(validatorUrl='none'))
    app.add_middleware(Gate, host=host, limits=limits, metrics=metrics)
    app.add_exception_handler(HTTPException, explain)
    app.add_exception_handler(RequestValidationError, explain_validation)
    app.add_exception_handler(Exception, explain_failure)

    @app.post(
        '/predict',
        summary='Tell the expressions of the faces of images',
        response_model=Answer,
        response_model_exclude_none=True,
        responses={
            status: dict(model=ErrorAnswer, description=description)
            for status, description in (
                (400, 'the form or a header is broken'),
                (403, 'the request comes from a page of somebody else'),
                (408, 'the request took too long to arrive'),
                (413, f'it has more than {limits.max_body} bytes'),
                (415, 'it is neither an image nor a form'),
                (422, 'none of its images can be used'),
                (503, 'too many requests are under way; try again'),
                (504, f'it took more than {limits.timeout} s'))
        },
        openapi_extra=dict(
            requestBody=dict(
                required=True,
                description=f'An image, or a form of up to {MAX_FILES} files',
                content={
                    'multipart/form-data':
                    dict(
                        schema=dict(
                            type='object',
                            properties=dict(
                                files=dict(
                                    type='array',
                                    items=dict(type='string',
                                               format='binary'))))),
                    'image/*':
                    dict(schema=dict(type='string', format='binary'))
                })))
    async def predict(request: Request,
                      aligned: bool = False,
                      embeddings: bool = False) -> Response:
        """With `aligned`, the images are aligned crops of one face, which need
        no detector. With `embeddings`, the features before the classifier are
        added to each face."""
        files = await read_files(request, limits.max_body)
        futures = [
            batcher.submit(content, name, aligned, embeddings)
            for name, content in files
        ]
        del files
        results = await wait(request, futures, limits.timeout)
        errors = [
            result.error for result in results
            if result.error and not result.faces
        ]
        for outcome, number in (('refused', len(errors)),
                                ('answered', len(results) - len(errors))):
            metrics.images.labels(outcome).inc(number)
        if len(errors) == len(results):
            raise HTTPException(422, list_some(errors))
        return JSONResponse(dict(images=[*map(describe_image, results)]))

    @app.get(
        '/health',
        summary='Tell that the server can answer',
        response_model=HealthAnswer)
    async def health() -> Response:
        """It also says what the model was trained on."""
        return JSONResponse(
            dict(
                status='ok',
                version=__version__,
                classes=inferencer.classes,
                device=inferencer.device,
                about=about))

    @app.get(
        '/metrics',
        summary='Counts and times for Prometheus',
        response_class=Response,
        responses={
            200: dict(content={'text/plain': dict(schema=dict(type='string'))})
        })
    async def read_metrics() -> Response:
        """In the text format, with the memory of the server."""
        return Response(
            exposition.generate_latest(metrics.registry),
            media_type=exposition.CONTENT_TYPE_LATEST)

    return app


def describe_image(result: ImageResult) -> dict:
    """Make plain data of a result."""
    plain = result.to_dict()
    return dict(name=plain.pop('path'), **plain)


async def explain(request: Request, error: HTTPException) -> Response:
    """Say what is wrong with a request."""
    if error.status_code == 404:
        error.detail = (f'Found nothing at {request.scope["path"]!r:.100}, '
                        'expected /predict, /health or /metrics. See /docs.')
    elif error.status_code == 405:
        error.detail = (
            f'Got {request.method:.20} for {request.scope["path"]}, '
            f'expected {(error.headers or {}).get("Allow")}. See '
            '/docs.')
    return refuse(error)


async def explain_validation(request: Request,
                             error: RequestValidationError) -> Response:
    """Say which parameter of a request is wrong."""
    first = error.errors()[0]
    return JSONResponse(
        dict(
            error=f'The parameter {first["loc"][-1]} is {first["input"]!r:.50}'
            f' ({first["msg"]}). Correct it, see /docs.'), 422)


async def explain_failure(request: Request, error: Exception) -> Response:
    """Say that it is not the fault of the request."""
    return JSONResponse(
        dict(error='The server failed. Its log says why.'), 500)


async def read_body(request: Request, max_body: int) -> bytes:
    """Read a request that is neither large nor slow."""
    too_large = HTTPException(
        413, f'Got a request of more than {max_body} bytes, expected at most '
        f'that. Shrink the images, or send fewer at once.')
    size = request.headers.get('content-length', '0')
    if size.isdecimal() and int(size[:20]) > max_body:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_body:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise HTTPException(
            408, f'Got {len(body)} bytes of the request in {BODY_SECONDS} s, '
            'expected all of it. Send it faster, or less.') from None
    except ClientDisconnect:
        raise HTTPException(400, 'The request has no end.') from None
    return bytes(body)


class FormParser(MultiPartParser):
    """Files of a form, in memory."""
    spool_max_size = 0  # which means no file on the disk


async def read_files(request: Request,
                     max_body: int) -> List[Tuple[str, bytes]]:
    """Read the images of a request, with their names."""
    kind = request.headers.get('content-type', '').split(';')[0].strip()
    kind = kind.lower()
    if kind == 'multipart/form-data':
        files = await read_form(request, await read_body(request, max_body))
    elif kind in RAW or kind.startswith('image/'):
        files = [('of the request', await read_body(request, max_body))]
        if not files[0][1]:
            raise HTTPException(
                400, 'Got an empty request, expected an image '
                'or a form with files. See /docs.')
    else:
        raise HTTPException(
            415, f'Got a request of the type {kind!r:.100}, expected image/* '
            'or multipart/form-data. See /docs.')
    return files


async def read_form(request: Request, body: bytes) -> List[Tuple[str, bytes]]:
    """Read the files of a form."""

    async def stream():
        yield body

    parser = FormParser(
        request.headers, stream(), max_files=MAX_FILES, max_fields=MAX_FILES)
    try:
        form = await parser.parse()
    except (FormParserError, MultiPartException) as error:
        reason = getattr(error, 'message', None) or 'it is broken'
        raise HTTPException(
            400, f'The form cannot be read ({reason}), expected up to '
            f'{MAX_FILES} files. Correct it, or send the image alone as '
            'image/*.') from None
    files = []
    for number, (name, item) in enumerate(form.multi_items(), 1):
        if not isinstance(item, UploadFile):
            raise HTTPException(
                400, f'Got the form field {name!r:.100}, expected files. '
                'Options are part of the address, such as '
                '/predict?aligned=true.')
        # A name is never a path here.
        name = printable(item.filename or f'{number}')[:MAX_NAME]
        files.append((name, item.file.read()))
    await form.close()
    if not files:
        raise HTTPException(
            400, 'Got a form without files, expected one or '
            'more. See /docs.')
    return files


async def wait(request: Request, futures: List[Future],
               timeout: float) -> List[ImageResult]:
    """Wait for results, as long as the client does."""
    results = asyncio.gather(*map(asyncio.wrap_future, futures))
    # It comes when the client has gone.
    gone = asyncio.ensure_future(request.receive())
    try:
        done, _ = await asyncio.wait([results, gone],
                                     timeout=timeout,
                                     return_when=asyncio.FIRST_COMPLETED)
        if results in done:
            return results.result()
        if gone in done:
            raise HTTPException(499, 'The client has gone.')
        raise HTTPException(
            504, f'The request was not answered within {timeout} s. Send '
            'fewer or smaller images, or try again later.')
    except HTTPException:
        raise
    except Exception as error:
        # Such as scores of the model that are no numbers
        logger.error('The model failed: %s', describe(error))
        raise HTTPException(
            500, 'The model failed. The log of the server says '
            'why.') from None
    finally:
        # Cancelled, they take no more work.
        results.cancel()
        gone.cancel()
