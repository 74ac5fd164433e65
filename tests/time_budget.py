"""A pytest plugin that says what a run of the tests cost: wall time beside a budget, and the costliest files.

    pytest --budget 10

Processor time counts, beside the wall time of a file, since it is the same on a busy machine; that of processes
that a test started is in it, as soon as they have ended.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Generator

import pytest

SHOWN = 15
"""Files in the list."""
_COST = "cost"


def _processor_s() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


class TimeBudget:
    """Adds up what each file costs; works with pytest-xdist, whose workers send reports only."""

    def __init__(self, budget_min: float) -> None:
        self._budget_min = budget_min
        self._began = self._last_wall = time.monotonic()
        self._last_processor = _processor_s()
        self._files: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write into a report what has been spent since the last one."""
        report = yield
        wall, processor = time.monotonic(), _processor_s()
        spent = (processor - self._last_processor, wall - self._last_wall)
        self._last_wall, self._last_processor = wall, processor
        report.user_properties.append((f"{_COST} {report.when}", spent))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add it to that of its file."""
        cost = self._files[report.nodeid.partition("::")[0]]
        for name, spent in report.user_properties:
            if name == f"{_COST} {report.when}" and isinstance(spent, list | tuple):
                cost[0] += spent[0]
                cost[1] += spent[1]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the costliest files and the wall time."""
        terminalreporter.section("cost")
        terminalreporter.write_line("processor s   wall s  file")
        costliest = sorted(self._files.items(), key=lambda item: -item[1][1])[:SHOWN]
        for name, (processor, wall) in costliest:
            terminalreporter.write_line(f"{processor:11.1f} {wall:8.1f}  {name}")
        spent_min = (time.monotonic() - self._began) / 60
        share = spent_min / self._budget_min
        terminalreporter.write_line(
            f"{spent_min:.1f} of the budget of {self._budget_min:g} minutes ({share:.0%})",
            red=share > 1,
            green=share <= 1,
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--budget`."""
    parser.addoption(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="print the cost of the run beside this wall time",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Count where a budget is given."""
    if budget_min := config.getoption("--budget"):
        config.pluginmanager.register(TimeBudget(budget_min), "time-budget-of-the-run")
