"""The page at `/`: `page.html` with the slider of reports, and a policy that lets nothing run or load but its own."""

from functools import cache
from pathlib import Path

from bfr.runtime.jobs.page import content_policy, with_slider


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page in UTF-8, and the headers to send it with."""
    text = with_slider(Path(__file__).with_name("page.html").read_text("utf-8"))
    loads = "img-src 'self' blob: data:; connect-src 'self'; frame-ancestors 'none'"
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": content_policy(text, loads),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # a page of another version would talk past the server
    }
    return text.encode(), headers
