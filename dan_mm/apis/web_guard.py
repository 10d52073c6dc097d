# Copyright (c) dan_mm contributors. All rights reserved.
import ipaddress
import json
import os
import re
import socket
from collections import Counter
from typing import Any, Set, Tuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from dan_mm.files import is_regular

# What the page asks for. Gradio serves much more: a proxy, recordings, the
# functions of components.
API = '/gradio_api'
PAGE = re.compile('/|/(?:config|theme.css|manifest.json|favicon.ico|pwa_icon'
                  '|robots.txt)/?|/(?:assets|static|svelte)/.+|' + API +
                  '/(?:info|theme.css|startup-events|queue/data|queue/status'
                  '|upload_progress|heartbeat/[^/]+)/?')
FILE = f'{API}/file='
UPLOAD, JOIN = f'{API}/upload', f'{API}/queue/join'
POSTS = UPLOAD, JOIN, f'{API}/cancel', f'{API}/reset'
MAX_JSON = 2**20  # bytes
MAX_FORM = 2**16  # bytes of an upload that are not of the file
META = dict(_type='gradio.FileData')
# What else the page says of a file: text, but for the size and the stream
FIELDS = dict(
    path=str,
    url=str,
    orig_name=str,
    mime_type=str,
    alt_text=str,
    size=int,
    is_stream=bool)


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


class OriginGuard:
    """Refuses what a page of somebody else in the same browser asks for: it
    has another ``Host`` (DNS rebinding) or ``Origin``.

    Args:
        host (str): The address that is listened at, or its name.
    """

    def __init__(self, host: str) -> None:
        self.hosts = {host.lower()}
        # Listening at all addresses, it has all the names of this machine.
        self.anywhere = host in ('0.0.0.0', '::')
        if self.anywhere:
            self.hosts |= {
                socket.gethostname().lower(),
                socket.getfqdn().lower()
            }

    def check_origin(self, scope: Scope) -> None:
        """Raise HTTPException if the request is not for this server."""
        headers = Headers(scope=scope)
        host, origin = headers.get('host', ''), headers.get('origin')
        try:
            parts = urlsplit(f'//{host}')
            name = parts.hostname if parts.netloc == host else None
            own = origin is None or urlsplit(origin).netloc == host
        except ValueError:
            name, own = None, False
        known = name is not None and '@' not in host and (
            name in self.hosts or is_loopback(name)
            or self.anywhere and name == scope['server'][0])
        if not known:
            raise HTTPException(
                403, f'Got a request to the host {host!r:.100}, expected '
                f'localhost or {", ".join(sorted(self.hosts))}. Use one of '
                'these names.')
        if not own:
            raise HTTPException(
                403, f'Got a request from a page of {origin!r:.100}, expected '
                'it from a page of this server alone.')


class WebGuard(OriginGuard):
    """ASGI middleware that lets through what the page itself asks for, and
    names of files only of those that the same session has uploaded.

    Args:
        app (ASGIApp): Gradio's application.
        host (str): The address that it listens at, or its name.
        folder (str): Where Gradio keeps uploads and results.
        max_file (int): Of how many bytes an upload may be.
    """

    def __init__(self, app: ASGIApp, host: str, folder: str,
                 max_file: int) -> None:
        super().__init__(host)
        self.app = app
        self.folder = os.path.join(folder, '')
        self.max_file = max_file
        # An upload belongs to the session that names it first: Gradio takes
        # uploads without one.
        self.unclaimed: Counter = Counter()
        self.claimed: Set[Tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive,
                       send: Send) -> None:
        if scope['type'] == 'websocket':
            # The page has none.
            await WebSocketClose()(scope, receive, send)
            return
        try:
            if scope['type'] == 'http':
                self.check_origin(scope)
                self._check_path(scope)
                path = scope['path'].rstrip('/')
                if path == JOIN:
                    receive = await self._check_join(receive)
                elif path == UPLOAD:
                    send = self._note_uploads(send)
        except HTTPException as refusal:
            response = PlainTextResponse(refusal.detail, refusal.status_code)
            await response(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive,
                      send: Send) -> None:
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watching)
        except Exception:
            # Gradio fails at numbers, names and headers out of range.
            if started or scope['type'] != 'http':
                raise
            response = PlainTextResponse('This is no request of the page.',
                                         400)
            await response(scope, receive, send)

    def _check_path(self, scope: Scope) -> None:
        path, method = scope['path'], scope['method']
        if method == 'POST' and path.rstrip('/') in POSTS:
            size = Headers(scope=scope).get('content-length', '')
            upload = path.rstrip('/') == UPLOAD
            limit = self.max_file + MAX_FORM if upload else MAX_JSON
            if not size.isdecimal():
                raise HTTPException(411, 'Got a request without its length.')
            if int(size) > limit:
                raise HTTPException(
                    413, f'Got a request of {size} bytes, expected at most '
                    f'{limit}.')
        elif method not in ('GET', 'HEAD') or not (PAGE.fullmatch(path)
                                                   or self._is_kept(path)):
            raise HTTPException(404, 'This is no part of the page.')

    def _is_kept(self, path: str) -> bool:
        if not path.startswith(FILE) or '\0' in path:
            return False
        file = path[len(FILE):]
        return file.startswith(
            self.folder) and os.path.realpath(file).startswith(
                os.path.join(os.path.realpath(self.folder), ''))

    def _note_uploads(self, send: Send) -> Send:
        """Remember the paths that the answer to an upload names."""
        status, body = None, b''

        async def noting(message: Message) -> None:
            nonlocal status, body
            if message['type'] == 'http.response.start':
                status = message['status']
            elif message['type'] == 'http.response.body' and status == 200:
                body += message.get('body', b'')
                if not message.get('more_body'):
                    self.unclaimed.update(json.loads(body))
            await send(message)

        return noting

    async def _check_join(self, receive: Receive) -> Receive:
        """Read the request that starts an event, and check it."""
        content, more = b'', True
        while more:
            message = await receive()
            if message['type'] == 'http.disconnect':
                raise HTTPException(400, 'The request has no end.')
            content += message.get('body', b'')
            more = message.get('more_body', False)
        try:
            body = json.loads(content)
            data, session = body['data'], body['session_hash']
        except (KeyError, RecursionError, TypeError, ValueError):
            raise HTTPException(400,
                                'This is no request of the page.') from None
        if not isinstance(data, list) or not isinstance(session, str):
            raise HTTPException(400, 'This is no request of the page.')
        for item in data:
            if item is not None and not self._is_uploaded(item, session):
                raise HTTPException(
                    403, 'Got a file that this session has not '
                    'uploaded.')
        # What was checked, and not what another parser makes of it
        checked = dict(
            type='http.request',
            body=json.dumps(body).encode(),
            more_body=False)
        messages = [checked]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay

    def _is_uploaded(self, item: Any, session: str) -> bool:
        """Whether this is a file that the session has uploaded, and no
        more."""
        if not isinstance(item, dict) or item.get('meta') != META or not all(
                key == 'meta' or value is None
                or isinstance(value, FIELDS.get(key, ()))
                for key, value in item.items()):
            return False
        path = item.get('path')
        if path is None or not is_regular(path):
            return False
        if (path, session) in self.claimed:
            return True
        if not self.unclaimed[path]:
            return False
        self.unclaimed[path] -= 1
        self.claimed.add((path, session))
        return True
