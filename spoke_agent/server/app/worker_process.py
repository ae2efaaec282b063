"""One worker of `spoke serve --workers N`, started by `worker_pool.py` as `python -m ...worker_process NUMBER FD`.

FD is the unix socket that all workers accept on. Its settings are the first line of its input; when that ends, so has the parent.
"""

import gc
import os
import socket
import sys


def main(number: int, handle: int) -> None:
    """Serve until the parent says or ends."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: the models bring their own threads
    gc.disable()  # until the server is settled: what a start makes, stays
    import logging

    from msgspec.structs import replace

    from model_formats.core.errors import SpokeshaveError
    from model_formats.core.log_event import LogEvent
    from model_formats.core.logging import log_to_stderr
    from spoke_agent.server.app.server import InferenceServer, serve
    from spoke_agent.server.app.worker_pool import settings_from
    from spoke_agent.site.core_dumps import forbid_core_dumps
    from spoke_agent.site.network_watch import watch

    log_to_stderr(worker=number)
    forbid_core_dumps()
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as told:
        settings = replace(settings_from(told.readline()), worker=number)
    watch(settings.folder, f"server-{number}", settings.may_call, resolves=bool(settings.may_call))
    shared = socket.socket(fileno=handle)

    def ready(_: InferenceServer) -> None:
        sys.stdout.write("serving\n")
        sys.stdout.flush()

    try:
        serve(settings, ready=ready, shared=shared, parent=sys.stdin.fileno())
    except SpokeshaveError as e:
        logging.getLogger("spoke.serve").error(LogEvent.SERVE_REFUSED, extra={"error": e.message})
        sys.exit(2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
