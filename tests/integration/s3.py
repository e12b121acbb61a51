"""An S3 server on loopback (moto's) that fails, throttles and dawdles at random; also the demo search on it.

python tests/integration/s3.py [key=value ...]    # what `make s3` runs
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow.fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "loopback",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
BUCKET = "searches"
ERRORS = {
    "failed": ("500 Internal Server Error", "InternalError"),
    "throttled": ("503 Slow Down", "SlowDown"),
    "denied": ("403 Forbidden", "InvalidAccessKeyId"),
}
Respond = Callable[..., Any]


class S3Server:
    """Answers one request in ten or so wrongly or late, from a seed; counts what it did.

    Args:
        seed: Of the faults; the order of requests is up to who asks.
        port: 0 for a free one.
    """

    def __init__(self, seed: int = 0, port: int = 0):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.counts: Counter[str] = Counter()
        self.rates = {"failed": 0.04, "throttled": 0.04, "unanswered": 0.02, "slow": 0.04}
        """Shares of requests that fail, are throttled, are done but answered as failed, or wait a second."""
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Begins to answer, with an empty bucket."""
        self._thread.start()
        pyarrow.fs.S3FileSystem(
            access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            scheme="http",
            endpoint_override=self.address,
            allow_bucket_creation=True,
        ).create_dir(BUCKET)
        self.counts.clear()

    @property
    def num_errors(self) -> int:
        """Answers so far that called for a retry."""
        return sum(self.counts[fault] for fault in ("failed", "throttled", "unanswered"))

    def stop(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._thread.join()

    def uri(self, prefix: str, bucket: str = BUCKET) -> str:
        """A storage on it."""
        return f"s3://{bucket}/{prefix}?endpoint_override={self.address}&scheme=http"

    def _answer(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        fault = self._next_fault()
        if f"Credential={CREDENTIALS['AWS_ACCESS_KEY_ID']}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            fault = "denied"
        # What is done in parts cannot be done twice, and only a server can cure that.
        if fault == "unanswered" and (environ["REQUEST_METHOD"] == "POST" or "uploadId" in environ["QUERY_STRING"]):
            fault = ""
        with self._lock:
            self.counts["requests"] += 1
            self.counts[fault or "served at once"] += 1
        if fault == "slow":
            time.sleep(1)
        if fault == "unanswered":
            b"".join(self._moto(environ, lambda *answer: None))
            fault = "failed"
        if fault not in ERRORS:
            return self._moto(environ, respond)
        status, code = ERRORS[fault]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # or the client would not hear the answer
        respond(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>as asked for</Message></Error>".encode()]

    def _next_fault(self) -> str:
        with self._lock:
            drawn = self._chance.random()
        for fault, rate in self.rates.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return ""


def main() -> int:
    """Runs the demo search on such a server. Returns its exit status."""
    server = S3Server()
    server.start()
    command = [sys.executable, "-m", "latentsync_ray.tune", "search_spaces/transition.yaml"]
    command += [f"storage={server.uri('demo')}", *sys.argv[1:]]
    status = subprocess.run(command, env=os.environ | CREDENTIALS).returncode
    print(f"the server: {dict(server.counts)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
