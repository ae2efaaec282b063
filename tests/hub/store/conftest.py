import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

from hub.store.database import Database


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/hub.db"


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL on a unix socket, where one is installed."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("needs PostgreSQL's programs")
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # not below pytest's own folder, which is closed to other users
        yield from _run_postgres(Path(folder))


def _run_postgres(folder):
    as_user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "nobody")
    data, sockets = folder / "data", folder
    subprocess.run([*as_user, "initdb", "-D", data, "-A", "trust", "-U", "hub", "-N"], check=True, capture_output=True)
    server = subprocess.Popen([*as_user, "postgres", "-D", data, "-k", sockets, "-h", "", "-F"], stderr=subprocess.PIPE)
    try:
        for line in server.stderr:
            if b"ready to accept connections" in line:
                break
        yield f"postgresql+psycopg://hub@/{{}}?host={sockets}"
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    if request.param == "sqlite":
        found = Database(f"sqlite:///{tmp_path}/hub.db").open()
    else:
        template, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
        import psycopg

        with psycopg.connect(template.format("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        found = Database(template.format(name)).open()
    yield found
    found.close()
