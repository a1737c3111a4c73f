"""What all tests share: the marker `gpu`, hypothesis without deadlines, and what was skipped and why."""

import os
import sys
from collections import defaultdict
from pathlib import Path

import hypothesis
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks; at the end, since mutants of lthlab go first

hypothesis.settings.register_profile("lthlab", deadline=None)
hypothesis.settings.load_profile("lthlab")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Keep the data sets that the user installed, and modules of the user's own, away from the tests."""
    os.environ["LTHLAB_DATA"] = str(tmp_path_factory.mktemp("home"))
    os.environ.pop("LTHLAB_WITH", None)


@pytest.fixture(autouse=True)
def figures():
    """Close what a test has opened, so that others find no figure of it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` where there is no CUDA device; torch is imported only if there are any."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter):
    """List the skipped tests by reason."""
    by_reason = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        by_reason[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if by_reason:
        terminalreporter.section("skipped tests and why")
    for reason, tests in sorted(by_reason.items()):
        terminalreporter.write_line(f"{reason} ({len(tests)}):")
        for test in tests:
            terminalreporter.write_line(f"  {test}")
