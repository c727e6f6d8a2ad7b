"""What every test may count on: marks for GPUs, one thread a worker, and no test left out in silence on CI."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ON_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share few cores
# Triton reads TRITON_INTERPRET when it is imported: without a GPU its kernels have a pytest process of their own.
KERNELS_RUN = os.environ.get("TRITON_INTERPRET") == "1" or importlib.import_module("torch").cuda.is_available()
collect_ignore = [] if KERNELS_RUN else ["kernels"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu and not importlib.import_module("torch").cuda.is_available():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def left_out(reporter: pytest.TerminalReporter) -> Iterator[str]:
    """Skipped tests and modules, but for those that need a GPU."""
    for report in reporter.stats.get("skipped", []):
        if "gpu" not in getattr(report, "keywords", {}):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            yield f"{report.nodeid}: {reason}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if ON_CI and reporter is not None and session.exitstatus == pytest.ExitCode.OK and any(left_out(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ON_CI:
        for line in left_out(terminalreporter):
            terminalreporter.write_line(
                f"ERROR: skipped, though no GPU is the only reason that counts: {line}", red=True
            )


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """The folder with the real CIFAR images that `S2TDPT_DATA` names."""
    if not os.environ.get("S2TDPT_DATA"):
        pytest.skip("S2TDPT_DATA does not name a folder with the real CIFAR images")
    return Path(os.environ["S2TDPT_DATA"])
