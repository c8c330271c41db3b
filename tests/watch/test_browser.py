"""The written page in a real browser, where there is one: its script runs, and says no error."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from watch.test_watch import write_run

from megaladder.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_charts_are_drawn_and_rollouts_listed(tmp_path):
    write_run(tmp_path / "a", steps=30)
    page = tmp_path / "r.html"
    assert main(["report", str(tmp_path / "a"), "--out", str(page)]) == 0
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    place = f"--user-data-dir={tmp_path / 'profile'}"
    budget = ("--virtual-time-budget=3000", "--window-size=1280,6000", "--dump-dom")
    command = [CHROMIUM, *flags, place, *budget, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    # loss, reward, mismatch; the seconds of each step are folded
    assert done.stdout.count("<canvas") == 3
    assert ">4 of 4</p>" in done.stdout and done.stdout.count('<details class="rollout"') == 4
    assert not re.search("<img", done.stdout), "what a model wrote stays text"
