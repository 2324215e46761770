"""Serves the page, by default to this machine only. Nothing in it comes from elsewhere, and nothing goes there."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from rdm.web.page import page
from rdm.web.studio import Studio

FONTS = ("system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "monospace")


def is_local(host: str) -> bool:
    """Returns whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def login(text: str) -> tuple[str, str]:
    """Returns user and password of ``user:password``.

    Raises:
        ValueError: the text has another form.
    """
    user, _, password = text.partition(":")
    if not user or not password:
        raise ValueError("got --auth without a user or a password, expected user:password")
    return user, password


def theme() -> gr.Theme:
    """Returns the colours and sizes of the page, with fonts that every system has."""
    look = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", spacing_size="sm", radius_size="md", text_size="sm",
        font=FONTS, font_mono=MONOSPACED,
    )  # fmt: skip
    return look.set(
        block_border_width="0px",
        block_background_fill="transparent",
        block_padding="0px",
        block_shadow="none",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
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
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder)
    blocks = page(studio).queue(max_size=studio.limits.queue, api_open=False)
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=studio.limits.upload_bytes,
        theme=theme(),
        css_paths=Path(__file__).with_name("style.css"),
    )
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def wait() -> None:
    """Waits until a signal ends the process."""
    threading.Event().wait()
