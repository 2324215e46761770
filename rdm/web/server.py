"""Serves the page, by default to this machine only. Nothing in it comes from elsewhere, and nothing goes there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.util import to_install  # isort: skip

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ValueError(f"no gradio, which makes the page: {to_install('web')}") from error
from starlette.middleware import Middleware

from rdm.web.gate import Gate
from rdm.web.page import page
from rdm.web.studio import Studio

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
FONTS = ("system-ui", "sans-serif")
# Gradio counts requests, and makes a table of them after each one.
NO_STATISTICS = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
SESSIONS = 100  # whose images are kept
THREADS = 12  # that answer; each has memory of its own in torch and faiss, which stays
MONOSPACED = ("ui-monospace", "monospace")


def theme() -> gr.Theme:
    """Returns the colours and sizes of the page, with fonts that every system has."""
    look = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", spacing_size="sm", radius_size="md", text_size="sm",
        font=FONTS, font_mono=MONOSPACED,
    )  # fmt: skip
    plain = {"block_background_fill": "transparent", "block_border_width": "0px", "block_shadow": "none"}
    return look.set(
        **plain,
        **{f"{name}_dark": value for name, value in plain.items()},
        block_padding="0px",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        button_large_padding="8px 16px",
    )


@contextmanager
def serving(
    studio: Studio, host: str = "127.0.0.1", port: int | None = None, auth: tuple[str, str] | None = None
) -> Iterator[str]:
    """Serves the page of a studio in the ``with`` block and yields its address.

    Args:
        studio: the studio. Its folder holds what users upload.
        host: the address to listen at.
        port: the port; the first free one from 7860 on if not given.
        auth: user and password that the page asks for.

    Raises:
        OSError: the port is in use.
    """
    limits = studio.limits
    with environment(GRADIO_TEMP_DIR=str(studio.folder), **NO_STATISTICS):
        blocks = page(studio).queue(max_size=limits.queue, api_open=False)
        gate = Middleware(Gate, folder=studio.folder, upload_bytes=limits.upload_bytes)
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            prevent_thread_lock=True,
            quiet=True,
            max_threads=THREADS,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["api"],
            max_file_size=limits.upload_bytes,
            state_session_capacity=SESSIONS,
            theme=theme(),
            head=f"<style>{STYLE}</style>",  # as it is; Gradio would leave out what it does not know
            app_kwargs={"middleware": [gate]},
        )
        try:
            yield address
        finally:
            studio.halt()
            end(blocks)


def end(blocks: gr.Blocks) -> None:
    """Ends the server of a page. It does not wait for pages that are open, of which it would otherwise complain."""
    log = logging.getLogger("uvicorn.error")
    blocks.server.force_exit = log.disabled = True
    blocks.close(verbose=False)
    log.disabled = False


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables in the ``with`` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def wait() -> None:
    """Waits until a signal ends the process."""
    threading.Event().wait()
