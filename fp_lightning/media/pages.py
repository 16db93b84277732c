"""Render self-contained HTML pages from a package's Jinja templates.

Pages extend `page.html` and inline style sheets and scripts with `include`: a page is one file that requests nothing
from the network.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fp_lightning.files import write_text


@cache
def _environment(package: str) -> Environment:
    """Return the environment that finds templates in `package`, then the shared ones of `fp_lightning.media`."""
    loaders = [PackageLoader(name, "templates") for name in dict.fromkeys((package, "fp_lightning.media"))]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def write_page(path: Path, package: str, template: str, **context: Any) -> Path:
    """Render a template and write the page atomically.

    Args:
        path: the HTML file.
        package: the package whose `templates` folder holds the template.
        template: file name; it extends `page.html`, which needs `title`.
        context: variables of the template. Text is escaped.

    Returns:
        `path`.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not in `context`.
    """
    return write_text(path, _environment(package).get_template(template).render(**context))
