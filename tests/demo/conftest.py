"""What the tests of the editor share: one server, one browser, one browser context per viewport.

The scope is the package, not the session: while the browser is open, Playwright's event loop runs in the main thread,
where other tests may need one of their own.
"""

from __future__ import annotations

import shutil

import pytest

from demo.user import DESKTOP, PHONE, User, new_context
from fp_lightning.demo.serve import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="package")
def server():
    with served(port=0, queue=6, per_user=1) as running:
        yield running


@pytest.fixture(scope="package")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium; `make chromium` installs Debian's")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def contexts(browser):
    """A browser context by viewport. Each keeps its cache of the page's scripts; `User.leave` clears its storage."""
    return {size: new_context(browser, size) for size in (DESKTOP, PHONE)}


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def user(contexts, server, request, tmp_path):
    user = User(contexts[request.param], server, tmp_path)
    yield user
    user.leave()
    assert not user.errors


@pytest.fixture
def desktop(contexts, server, tmp_path):
    user = User(contexts[DESKTOP], server, tmp_path)
    yield user
    user.leave()
    assert not user.errors
