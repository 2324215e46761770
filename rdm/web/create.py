"""The tab Create: from texts to images beside their neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from rdm.sampling import ways
from rdm.sampling.settings import Settings
from rdm.web.answers import SAMPLING, answering
from rdm.web.markup import board, card
from rdm.web.studio import Studio


def tab(studio: Studio) -> None:
    """Builds the tab within the open ``gr.Tab``."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            prompt = gr.Textbox(label="Text", info="Each line makes a picture of its own.", lines=3)
            database = gr.Dropdown(studio.names, label="Database")
            with gr.Row():
                k = gr.Slider(1, studio.limits.neighbours, studio.pipeline().k, step=1, label="Neighbours")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                steps = gr.Slider(1, studio.limits.steps, 10, step=1, label="Steps")
                scale = gr.Slider(1.0, 10.0, float(Settings().scale), label="Scale of guidance")
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(board([]))

    @answering
    def create(prompt: str, database: str, k: int, seed: int, steps: int, scale: float) -> Iterator[str]:
        """Draws one picture for each line of a text, beside its neighbours."""
        lines = [line.strip() for line in prompt.splitlines() if line.strip()] or [""]
        for line in lines:
            studio.limits.check(prompt_characters=len(line))
        studio.limits.check(images=len(lines), neighbours=k)
        request = ways.texts(studio.pipeline(database), lines, k=k, seed=int(seed))
        cards: list[str] = []
        for drawn in studio.draw(database, request, Settings(steps=steps, scale=scale)):
            cards.append(card(drawn))
            yield board(cards)

    gr.on(
        [button.click, prompt.submit],
        create,
        [prompt, database, k, seed, steps, scale],
        shown,
        api_name="create",
        concurrency_id=SAMPLING,
        concurrency_limit=1,
    )
