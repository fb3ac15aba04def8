"""Processes that tests start together.

They are forked from one that has imported everything already, and has done nothing else: it takes
a process five seconds to import what a run needs, and far less to do what a test asks of it.
"""

import multiprocessing
import socket

from torch.multiprocessing import start_processes

IMPORTED = [
    "torch._dynamo",  # every optimizer's
    "sklearn.datasets",
    "torchvision",
    "gratis.train",
    "tests.distributed_runs",
]


def start_together(function, world, *arguments):
    """function(rank, port, *arguments) in each of `world` processes; returns when all have ended.

    port: one that is free, at which they can meet.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(function, (port, *arguments), world, start_method="forkserver")
