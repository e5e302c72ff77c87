"""Property tests draw the same cases at every run in CI, and fresh ones at a developer's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "searching")


@pytest.fixture(autouse=True)
def _notes_are_heard_again() -> Iterator[None]:
    """A command run with --quiet silences the package's log for good; other tests are about warnings."""
    log = logging.getLogger("coretune")
    before = log.level
    yield
    log.setLevel(before)
