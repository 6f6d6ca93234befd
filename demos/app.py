"""A page to try it on: `python demos/app.py`, then open the address that it prints."""

from pathlib import Path
from typing import Annotated

import gradio as gr
import typer
from studio import layout
from studio.uploads import MEGABYTES

LOOPBACK = "127.0.0.1"
FONT = ("system-ui", "sans-serif")  # of the visitor's machine: the page loads nothing from elsewhere
MONO = ("ui-monospace", "monospace")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the first free one from 7860 on.")] = 0,
    share: Annotated[bool, typer.Option("--share", help="A public link, by Gradio's servers.")] = False,
) -> None:
    """Serve the page: visitors may ask the embedded models, and any other that this machine can load."""
    layout.build().launch(
        server_name=host,
        server_port=port or None,
        share=share,
        max_file_size=MEGABYTES << 20,
        allowed_paths=[str(layout.SAMPLES)],
        theme=gr.themes.Soft(font=FONT, font_mono=MONO),
        css_paths=Path(layout.__file__).parent / "style.css",
        footer_links=["settings"],
        ssr_mode=False,
    )


if __name__ == "__main__":
    app()
