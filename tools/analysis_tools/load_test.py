# Copyright (c) dan_mm contributors. All rights reserved.
"""Load `dan-mm serve`: its throughput for one request after another and for
several clients at once, the times of requests, and its memory.

The exit status is 1 if a request failed.
"""
import argparse
import http.client
import re
import sys
import threading
import time
from collections import Counter
from itertools import count
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                           TimeRemainingColumn)
from rich.table import Table


def read_metrics(address):
    """The memory of the server, in bytes, and how many images it has answered
    in how many batches."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request('GET', '/metrics')
    text = connection.getresponse().read().decode()
    connection.close()

    def find(name):
        found = re.search(rf'^{name} (\S+)', text, re.MULTILINE)
        return float(found[1]) if found else float('nan')

    return np.array([
        find('process_resident_memory_bytes'),
        find('dan_mm_batch_images_sum'),
        find('dan_mm_batch_images_count')
    ])


class Load:
    """Requests of a number of clients.

    Attributes:
        seconds (list[float]): How long each took.
        wall (float): How long all of them took.
        statuses (Counter): Their statuses, or errors.
    """

    def __init__(self, address, path, bodies, clients, requests, advance):
        self.address, self.path, self.bodies = address, path, bodies
        self.seconds, self.statuses = [], Counter()
        self.requests, self.numbers = requests, count()
        self.advance = advance
        threads = [threading.Thread(target=self.ask) for _ in range(clients)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.wall = time.perf_counter() - begin

    def ask(self):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        # `next` of a counter is atomic.
        while (number := next(self.numbers)) < self.requests:
            body = self.bodies[number % len(self.bodies)]
            begin = time.perf_counter()
            try:
                connection.request('POST', self.path, body,
                                   {'Content-Type': 'image/*'})
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = type(error).__name__
            self.seconds.append(time.perf_counter() - begin)
            self.statuses[status] += 1
            self.advance()
        connection.close()

    @property
    def rate(self):
        return self.statuses[200] / self.wall

    @property
    def errors(self):
        return sum(self.statuses.values()) - self.statuses[200]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('url', help='such as http://127.0.0.1:8000')
    parser.add_argument('images', nargs='+', help='files to send, in turn')
    parser.add_argument('--clients', type=int, default=16)
    parser.add_argument('--requests', type=int, default=5000)
    parser.add_argument(
        '--aligned',
        action='store_true',
        help='the images are aligned crops of one face')
    args = parser.parse_args()
    address = urlsplit(args.url).netloc
    path = '/predict?aligned=true' if args.aligned else '/predict'
    bodies = []
    for name in args.images:
        with open(name, 'rb') as file:
            bodies.append(file.read())
    console = Console()
    with Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True) as progress:

        def load(text, clients, requests):
            task = progress.add_task(text, total=requests)
            return Load(address, path, bodies, clients, requests,
                        lambda: progress.advance(task))

        load('Warming up', args.clients, 10 * args.clients)
        before = read_metrics(address)
        # On both sides, since other programs may disturb it
        serial = max(args.requests // 20, 10)
        one = load('One after another', 1, serial)
        start = read_metrics(address)
        many = load(f'{args.clients} clients', args.clients, args.requests)
        after = read_metrics(address)
        again = load('One after another', 1, serial)
    table = Table('clients', 'requests', 'errors', 'requests/s', 'p50 ms',
                  'p95 ms', 'p99 ms')
    for clients, one_load in ((1, one), (args.clients, many), (1, again)):
        times = 1000 * np.percentile(one_load.seconds, [50, 95, 99])
        table.add_row(
            str(clients), str(len(one_load.seconds)), str(one_load.errors),
            f'{one_load.rate:.1f}', *(f'{value:.1f}' for value in times))
    console.print(table)
    one_rate = 2 * serial / (one.wall + again.wall)
    images, batches = (after - start)[1:]
    console.print(f'{many.rate / one_rate:.2f} times the throughput of one '
                  f'after another; {images / batches:.1f} images a batch')
    sizes = ' -> '.join(f'{memory / 2**20:.1f}'
                        for memory in (before[0], start[0], after[0]))
    console.print(f'memory of the server: {sizes} MiB (after warming up, '
                  f'before and after the {args.clients} clients)')
    failed = one.statuses + many.statuses + again.statuses
    del failed[200]
    if failed:
        console.print(f'Failed: {dict(failed)}')
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
