"""The kit as a pytest plugin: one test for each check of a backend.

    $ pytest --conformance abacus

or for good, in the `pyproject.toml` of the backend's package:

    [tool.pytest.ini_options]
    mainspring_conformance = ["abacus"]

A backend is named as `--backend` takes it, or as `module:Class`. Its device is opened when its first check runs and
closed at the end. Names of checks come from what the backend declares, so collecting opens nothing.

pytest loads this module in every run of every project where Mainspring is installed: what needs torch is imported when
a backend is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mainspring.core.backend import Backend, Device
    from mainspring.core.conformance.report import Finding
    from mainspring.core.conformance.trial import Check

OPTION, INI = "conformance", "mainspring_conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--conformance BACKEND`, and its lasting form."""
    group = parser.getgroup("mainspring", "Mainspring's conformance kit")
    group.addoption(f"--{OPTION}", action="append", default=[], metavar="BACKEND", help="check this backend, too")
    parser.addini(INI, "backends that are checked in every run", type="args", default=[])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the checks of each backend that was asked for."""
    asked = [*config.getini(INI), *config.getoption(OPTION)]
    for address in dict.fromkeys(asked):
        items += ConformanceCollector.from_parent(session, name=f"conformance/{address}", address=address).collect()


class ConformanceCollector(pytest.Collector):
    """The checks of one backend. They share its device."""

    def __init__(self, *, address: str, **named: Any) -> None:
        super().__init__(**named)
        self.address = address
        self._device: Device | None = None

    def collect(self) -> Iterator[ConformanceItem]:
        """One item a check, by what the backend declares. An unavailable one has a single item, which says why."""
        from mainspring.core.conformance.find import find_backend
        from mainspring.core.errors import StartupError

        try:
            subjects = list(_runs(find_backend(self.address), self))
        except StartupError as error:
            raise pytest.UsageError(f"--{OPTION} {self.address}: {'; '.join(error.reasons)}") from error
        for subject, run in subjects:
            yield ConformanceItem.from_parent(self, name=subject, run=run)

    def device(self, backend: Backend) -> Device:
        """Opened when it is first asked for."""
        from mainspring.core.config import EngineConfig

        if self._device is None:
            self._device = backend.open(0, 0, 1, EngineConfig(model="conformance", backend=backend.name))
        return self._device

    def teardown(self) -> None:
        """After the last check."""
        if self._device is not None:
            self._device.close()
            self._device = None


def _runs(backend: Backend, parent: ConformanceCollector) -> Iterable[tuple[str, Callable[[], Finding]]]:
    from mainspring.core.conformance.checks import all_checks, device_info, run

    capabilities = backend.capabilities(device_info(backend, 0))

    def run_one(check: Check) -> Finding:
        return run([check], parent.device(backend))[0]

    return [(check.subject, partial(run_one, check)) for check in all_checks(backend, capabilities, parent.address)]


class ConformanceItem(pytest.Item):
    """One check."""

    def __init__(self, *, run: Callable[[], Finding], **named: Any) -> None:
        super().__init__(**named)
        self._run = run

    def runtest(self) -> None:
        """Fails with every problem; a check that could not be tried is skipped with its reason."""
        finding = self._run()
        if finding.problems:
            raise NotConforming(finding)
        if not finding.cases:
            pytest.skip(finding.note or "nothing to try")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The problems alone: where in the kit they were found helps nobody."""
        if isinstance(excinfo.value, NotConforming):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """How the test is called."""
        parent = self.parent.name if self.parent is not None else ""
        return parent, None, f"{parent}: {self.name}"


class NotConforming(Exception):
    """A check found something."""

    def __init__(self, finding: Finding) -> None:
        super().__init__("\n".join((f"{finding.subject} ({finding.origin}) does not conform:", *finding.problems)))
