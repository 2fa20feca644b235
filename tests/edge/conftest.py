import os

import pytest


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    """What a test writes need not outlast a power cut; tests that count syncs replace this by their own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
