"""The page in a browser behind a password and under a root path."""

from __future__ import annotations

import httpx

from demo.user import DESKTOP, User, new_context
from fp_lightning.demo.components import STATIC, script_routes
from fp_lightning.demo.serve import served


def test_the_page_works_behind_a_password_and_under_a_root_path(browser, tmp_path, monkeypatch):
    """A proxy serves /editor/… from the server's root, as nginx does with a prefix that it strips."""
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/editor")
    with served(port=0, password="right") as running:
        context, outside = new_context(browser, DESKTOP), []

        def proxy(route):
            url = route.request.url
            if "/editor/" not in url:
                outside.append(url)
            route.continue_(url=url.replace("/editor/", "/"))

        context.route(f"{running.url}**", proxy)
        login = context.new_page()
        login.goto(f"{running.url}editor/")
        login.get_by_label("username").fill("editor")
        login.get_by_label("password").fill("right")
        login.get_by_role("button", name="Login").click()
        login.wait_for_selector("#canvas canvas[data-ready]")
        login.close()
        user = User(context, running, tmp_path, path="editor/")
        user.press("Drag")
        user.pull((60, 150), (100, 90))
        assert "1 edit in " in user.edit()
        user.leave()
        context.close()
        assert not outside and not user.errors


def test_only_the_scripts_of_the_page_are_served(server):
    (route,) = script_routes()
    folder = server.url.rstrip("/") + route.path.removesuffix("{name:path}")
    for path in STATIC.rglob("*.js"):
        answer = httpx.get(folder + path.relative_to(STATIC).as_posix())
        assert answer.text == path.read_text("utf-8") and answer.headers["content-type"].startswith("text/javascript")
    for name in ("canvas.html", "../serve.py", "..%2fserve.py", "%2fetc%2fpasswd", ""):
        assert httpx.get(folder + name).status_code == 404
