"""The project as a Flower app, made of the installed packages, and the ``flwr`` command.

Nothing here needs a checkout: the app bundle is what is installed, so that every machine of a
tree runs the version that its own ``pip`` shows.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import hffm_flower
from hffm_flower.config import RunConfig
from hffm_flower.errors import ConfigError, HffmError
from hffm_flower.version import __version__

APP: Final = "hffm-flower"
"""Name of the app's folder; Flower refuses one with "_"."""
PACKAGES: Final = ("hffm_flower", "strategies", "clients")
DEVICE: Final = "clients.client_app:app"
PROXY: Final = "clients.edge_proxy:app"
LICENSE: Final = "Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"
PATIENCE_S: Final = 120.0
"""How long a ``flwr`` command may take [s]."""
QUIET: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ONE_THREAD: Final[Mapping[str, str]] = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
"""For all that aggregates: with other numbers of threads, QR and SVD give other last bits.

Read when numpy is first imported, so it must be in the environment of a process from its start.
"""


def make_app(folder: Path, *, proxy: bool = False, packages: Path | None = None) -> Path:
    """Write the Flower app into ``folder``.

    Args:
        folder: Where the app's own folder is made.
        proxy: Whether its ClientApp is that of an edge's upstream node, not of a device.
        packages: Where the packages lie; default: where this one is installed.

    Returns:
        The app's folder, for ``flwr run``.

    Raises:
        ConfigError: The packages do not lie side by side.
    """
    packages = packages or Path(hffm_flower.__file__).parents[1]
    app = folder / APP
    for package in PACKAGES:
        if not (packages / package / "__init__.py").is_file():
            raise ConfigError(
                f"{packages} holds no package {package!r} beside hffm_flower; install the project "
                "as a whole: pip install hffm-flower"
            )
        for source in sorted((packages / package).rglob("*.py")):
            target = app / source.relative_to(packages)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    (app / "pyproject.toml").write_text(_project(PROXY if proxy else DEVICE), encoding="utf-8")
    (app / "LICENSE").write_text(LICENSE, encoding="utf-8")
    return app


def _project(client: str) -> str:
    """The app's ``pyproject.toml``: every setting, at its default."""
    include = ", ".join([*(f'"{package}/**/*.py"' for package in PACKAGES), '"LICENSE"'])
    return (
        f'[project]\nname = "{APP}"\nversion = "{__version__}"\n'
        'description = "Hierarchical federated foundation models"\n'
        'dependencies = ["flwr>=1.41.0,<1.42"]\n'
        'license = { file = "LICENSE" }\n\n'
        f'[tool.flwr.app]\npublisher = "{APP}"\nfab-format-version = 1\n'
        f'flwr-version-target = "1.41.0"\nfab-include = [{include}]\n\n'
        '[tool.flwr.app.components]\nserverapp = "strategies.server_app:app"\n'
        f'clientapp = "{client}"\n\n'
        f"[tool.flwr.app.config]\n{to_toml(RunConfig().to_flwr())}"
    )


def to_toml(settings: Mapping[str, object]) -> str:
    """Flat settings as TOML, one dotted key per line."""
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items()
    )


def program(name: str) -> str:
    """Path of one of Flower's programs: beside this Python, else on ``PATH``.

    Raises:
        ConfigError: It is not installed.
    """
    found = shutil.which(name, path=search_path())
    if found is None:
        raise ConfigError(f"there is no program {name!r} beside {sys.executable} nor on PATH")
    return found


def search_path() -> str:
    """``PATH`` with this Python's own programs first: Flower starts its own by name."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the SuperLink sees it.

    Attributes:
        run_id: Its number.
        status: ``pending``, ``starting``, ``running``, ``finished:completed`` and the like.
        elapsed: How long it has been at work [s].
        details: Why it failed.
    """

    run_id: int
    status: str
    elapsed: float = 0.0
    details: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status.startswith("finished")

    @property
    def well(self) -> bool:
        """Whether it has ended well."""
        return self.status == "finished:completed"


class Flwr:
    """The ``flwr`` command with connections of its own, in a folder that is its home.

    Args:
        home: Folder; becomes ``FLWR_HOME``.
        environment: Of the processes.
    """

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._links: dict[str, tuple[str, str]] = {}
        self._enter: dict[str, tuple[str, ...]] = {}
        self._environment = {
            **(os.environ if environment is None else environment), **QUIET,
            "PATH": search_path(), "FLWR_HOME": str(home),
        }  # fmt: skip
        self._apps: dict[bool, Path] = {}

    def connect(
        self, name: str, address: str, authority: Path | None, *, enter: tuple[str, ...] = ()
    ) -> None:
        """Name a SuperLink.

        Args:
            name: For the commands.
            address: Where it listens.
            authority: Who signed its certificate; None: no TLS.
            enter: What goes in front of a command, to be run where the SuperLink is.
        """
        self._enter[name] = enter
        trust = f"root-certificates = {json.dumps(str(authority))}"
        self._links[name] = (address, trust if authority else "insecure = true")
        lines = [f'[superlink]\ndefault = "{next(iter(self._links))}"']
        lines += [
            f'[superlink.{n}]\naddress = "{at}"\n{trusted}'
            for n, (at, trusted) in self._links.items()
        ]
        (self.home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(self, link: str, settings: Mapping[str, object]) -> int:
        """Hand in a run with these settings; its id."""
        proxy = settings.get("deploy.tier") == "cloud"
        if proxy not in self._apps:
            self._apps[proxy] = make_app(self.home / f"app-{int(proxy)}", proxy=proxy)
        with tempfile.NamedTemporaryFile("w", dir=self.home, suffix=".toml") as file:
            file.write(to_toml(settings))
            file.flush()
            said = self._json(
                link, "run", str(self._apps[proxy]), link, "--run-config", file.name,
                "--format", "json",
            )  # fmt: skip
        return int(str(said["run-id"]))

    def runs(self, link: str) -> list[Run]:
        """The SuperLink's runs, the latest first."""
        said = self._json(link, "ls", link, "--limit", "1000", "--format", "json")
        rows = said["runs"]
        assert isinstance(rows, list)
        return [
            Run(int(r["run-id"]), r["status"], float(r["elapsed"]), str(r["status-details"] or ""))
            for r in rows
        ]

    def status(self, link: str, run_id: int) -> Run:
        """One run; status ``unknown`` if the SuperLink does not know it."""
        return next((r for r in self.runs(link) if r.run_id == run_id), Run(run_id, "unknown"))

    def stop(self, link: str, run_id: int) -> None:
        """Stop a run."""
        self._json(link, "stop", str(run_id), link, "--format", "json")

    def nodes(self, link: str) -> list[Mapping[str, object]]:
        """The SuperLink's nodes, as ``flwr supernode list`` says."""
        rows = self._json(link, "supernode", "list", link, "--format", "json")["nodes"]
        assert isinstance(rows, list)
        return rows

    def register(self, link: str, key: Path) -> None:
        """Register a node's public key; one that is registered already stays so."""
        try:
            self._json(link, "supernode", "register", str(key), link, "--format", "json")
        except HffmError as error:
            if "already in use" not in str(error):
                raise

    def _json(self, link: str, *words: str) -> Mapping[str, object]:
        """What a command about ``link`` answers.

        Raises:
            HffmError: It failed; the message is its own.
        """
        what = f"flwr {' '.join(words[: 2 if words[0] == 'supernode' else 1])}"
        try:
            done = subprocess.run(
                [*self._enter.get(link, ()), program("flwr"), *words],
                cwd=self.home, env=self._environment, capture_output=True, text=True,
                timeout=PATIENCE_S, check=False, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HffmError(f"{what} has not answered for {PATIENCE_S:.0f} s") from error
        return _answer(what, done.stdout, done.stderr)


def _answer(what: str, out: str, err: str) -> Mapping[str, object]:
    try:
        said = json.loads(out[out.index("{") :])
    except ValueError:
        said = {}
    if not isinstance(said, dict) or not said.get("success"):
        reason = said.get("error-message") if isinstance(said, dict) else ""
        raise HffmError(f"{what}: {reason or _last_lines(out + err)}")
    return said


def _last_lines(text: str, lines: int = 5) -> str:
    return " ".join(text.split("\n")[-lines:]).strip() or "no answer"


def shown(argv: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join([Path(argv[0]).name, *argv[1:]])
