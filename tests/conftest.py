"""In CI nothing may be skipped for want of what can be installed: such a skip is a hole.

Another version of Python, or an address family that this machine lacks, cannot be installed here.
"""

import os

import pytest

CANNOT_INSTALL = ("no Python", "no ::1")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    reasons = [str(r.longrepr[2]).removeprefix("Skipped: ") for r in reports if isinstance(r.longrepr, tuple)]
    holes = [reason for reason in reasons if not reason.startswith(CANNOT_INSTALL)]
    if holes and os.environ.get("GRID_AGENT_CI") and exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"skipped, which in CI is a failure: {'; '.join(sorted(set(holes)))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
