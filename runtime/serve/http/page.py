"""The page at `/`: `page.html` with the slider of reports, and a policy that lets nothing run or load but its own."""

from functools import cache
from pathlib import Path

from bfr.runtime.jobs.page import source_expression, with_slider


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page in UTF-8, and the headers to send it with."""
    text = with_slider(Path(__file__).with_name("page.html").read_text("utf-8"))
    style, script = (source_expression(text, tag) for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; style-src {style}; script-src {script}; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # a page of another version would talk past the server
    }
    return text.encode(), headers
