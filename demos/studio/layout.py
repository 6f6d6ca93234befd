"""The page: what is on it, and what happens when something is pressed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from tokenprune.errors import InputError, TokenPruneError
from tokenprune.eval import shapes

from . import controls, front, pictures
from .asking import Answer, Asker, Question
from .models import EMBEDDED
from .uploads import FRAMES, MEGABYTES, read

SAMPLES = shapes.CHECKPOINT.parent / "samples"
EXAMPLES = {  # file -> number of its question
    "scene-10001.png": 1,
    "scene-10000.png": 0,
    "scene-10012.png": 2,
    "clip-10057.mp4": 0,
    "clip-10030.gif": 0,
}
COMPARED = ["random", "uniform", "divprune", "cdpruner", "covipal", "fastv"]
MODEL_TURN = {"concurrency_id": "model", "concurrency_limit": 1}  # one at a time, the others wait in a queue
PLAIN = {"api_visibility": "private"}


def build() -> gr.Blocks:
    """The page, not launched yet."""
    asker = Asker()
    with gr.Blocks(title="tokenprune", analytics_enabled=False) as page:
        gr.Markdown(
            "# tokenprune\nA vision-language model answers with a fraction of its visual tokens: what is kept, what it "
            "costs, what it saves.",
            elem_id="title",
        )
        alert = gr.HTML(elem_id="alert")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                asked = _asked(alert)
            with gr.Column(scale=5, min_width=360), gr.Tabs():
                with gr.Tab("Ask"):
                    _ask_tab(asker, asked, alert)
                with gr.Tab("Compare"):
                    _compare_tab(asker, asked, alert)
                with gr.Tab("Pareto"):
                    _pareto_tab()
    return page


def _asked(alert: gr.HTML) -> list[gr.components.Component]:
    """File, question, model, frames and length of the answer."""
    samples = {name: _questions(name) for name in EXAMPLES}
    file = gr.File(label=f"Picture or video, up to {MEGABYTES} MB", elem_id="file", height=120)
    preview = gr.Image(
        label="Seen", show_label=False, interactive=False, visible=False, elem_id="preview", height=220, buttons=[]
    )
    gr.HTML("Or one of these: three pictures, two clips", elem_classes="caption")
    gallery = gr.Gallery(
        [(_thumbnail(name), "video" if name.startswith("clip") else "picture") for name in EXAMPLES],
        label="Examples",
        show_label=False,
        columns=len(EXAMPLES),
        height=None,
        allow_preview=False,
        object_fit="cover",
        elem_id="examples",
        buttons=[],
    )
    question = gr.Textbox(
        label="Question", elem_id="question", interactive=True, placeholder="What is asked about it", lines=1
    )
    with gr.Accordion("Model", open=False):
        model = gr.Dropdown(
            [EMBEDDED],
            value=EMBEDDED,
            allow_custom_value=True,
            interactive=True,
            label="Model",
            info="The embedded one (there is one for pictures and one for videos), a checkpoint folder, or a hub id.",
            elem_id="model",
        )
        new = gr.Slider(
            1,
            256,
            value=64,
            step=1,
            interactive=True,
            label="Longest answer, tokens",
            info="The embedded models answer one word.",
            elem_id="new",
        )
        frames = gr.Slider(1, FRAMES, value=8, step=1, label="Frames read of a video", elem_id="frames")

    def previewed(path: str | None, count: int):
        if not path:
            return {preview: gr.Image(visible=False), alert: ""}
        try:
            given = read(path, count)
        except TokenPruneError as error:
            return {preview: gr.Image(visible=False), alert: _said(error)}
        label = f"{given.name}: first of {len(given.frames)} frames" if given.videos else given.name
        return {preview: gr.Image(Image.fromarray(given.frames[0]), label=label, visible=True), alert: ""}

    def example(event: gr.SelectData):
        name = list(EXAMPLES)[event.index]
        return str(SAMPLES / name), samples[name][EXAMPLES[name]]

    file.change(previewed, [file, frames], [preview, alert], show_progress="hidden", **PLAIN)
    gallery.select(example, None, [file, question], show_progress="hidden", **PLAIN)
    return [file, question, model, frames, new]


def _ask_tab(asker: Asker, asked: list[gr.components.Component], alert: gr.HTML) -> None:
    chosen, shares, live = (
        [],
        [],
        {"interactive": True},
    )  # which Gradio cannot see by itself where `render` connects them
    with gr.Row():
        for stage, title in controls.STAGES.items():
            with gr.Column(min_width=200), gr.Group():
                first, names = controls.FIRST.get(stage, controls.NOTHING), [controls.NOTHING, *controls.names(stage)]
                chosen.append(gr.Dropdown(names, value=first, label=title, elem_id=f"policy-{stage}"))
                shares.append(
                    gr.Slider(1, 100, value=11, step=1, **live, label="Tokens kept, %", elem_id=f"keep-{stage}")
                )
    fields = gr.Column()
    with gr.Row():
        run = gr.Button("Ask, dense and pruned", variant="primary", elem_id="run", scale=4)
        stop = gr.Button("Stop", elem_id="stop", scale=1)
    shown: dict[str, list[Any]] = {"dense": [], "pruned": []}
    with gr.Row():
        for name, parts in shown.items():
            with gr.Column(min_width=240):
                parts.append(gr.Textbox(label=f"{name.capitalize()} answer", elem_id=name, lines=2))
                parts.append(gr.HTML(elem_id=f"{name}-facts"))
    bars = gr.HTML(elem_id="bars")
    picture = {"visible": False, "show_label": False, "interactive": False, "buttons": ["fullscreen"]}
    strip = gr.Image(label="Kept of every step", elem_id="strip", **picture)
    scrubber = gr.Slider(1, 2, value=1, step=1, interactive=True, label="Step", visible=False, elem_id="scrubber")
    captions = gr.Row(visible=False)
    with captions:
        gr.HTML("Kept: dropped tokens dark, merged ones in a colour", elem_classes="caption")
        gr.HTML("Scores that tokens were chosen by: violet low, yellow high", elem_classes="caption")
    with gr.Row():
        kept = gr.Image(label="Kept", elem_id="kept", **picture)
        heat = gr.Image(label="Scores", elem_id="heat", **picture)
    note = gr.HTML(elem_id="note")
    with gr.Accordion("Report", open=False):
        report = gr.Code(language=None, elem_id="report", show_label=False, lines=1)
    steps = gr.State(([], []), time_to_live=3600)
    drawings = [strip, scrubber, captions, kept, heat]
    outputs = [alert, *shown["dense"], *shown["pruned"], bars, *drawings, note, report, steps]

    def ask(made, path, question, model, frames, new, *rest):
        names, budgets, values, policies = rest[:3], rest[3:6], list(rest[6:]), []
        yield {
            alert: "",
            bars: "",
            note: "",
            **{one: gr.update(visible=False) for one in drawings},
        }
        with _sentence() as said:
            for name, budget in zip(names, budgets, strict=True):
                if name != controls.NOTHING:
                    mine = made[name]
                    policies.append(controls.policy(name, budget, [values.pop(0) for _ in mine], mine))
            given = read(path, frames)
            answers: dict[str, Answer] = {}
            if not policies:
                raise InputError("No policy is chosen: choose one of the three.")
            for name, answer in asker.ask(Question(given, question, model, new), {"dense": [], "pruned": policies}):
                if answer.error:
                    raise InputError(answer.error)
                answers[name] = answer
                yield dict(zip(shown[name], (answer.text, pictures.facts(answer)), strict=True))
            yield {bars: pictures.bars(answers), report: str(answers["pruned"].report)}
            yield drawn(given, answers["pruned"])
        if said:
            yield {alert: said[0]}

    def drawn(given, answer):
        of, by = pictures.kept(given, answer.report), pictures.scores(given, answer)
        said = [one.missing for one in (of, by) if one.missing]
        found = {steps: (of.steps, by.steps), note: "".join(f'<p class="note">{escape(one)}</p>' for one in said)}
        found[captions] = gr.update(visible=of.whole is not None and by.whole is not None)
        found[heat] = gr.update(value=by.whole, visible=by.whole is not None)
        if of.steps:
            found[strip] = gr.update(value=of.whole, visible=True)
            found[scrubber] = gr.update(value=1, maximum=len(of.steps), visible=len(of.steps) > 1)
        found[kept] = gr.update(value=of.steps[0] if of.steps else of.whole, visible=of.whole is not None)
        return found

    def scrub(step, pages):
        return [one[min(int(step), len(one)) - 1] if one else gr.skip() for one in pages]

    scrubber.input(scrub, [scrubber, steps], [kept, heat], show_progress="hidden", queue=False, **PLAIN)

    with fields:

        @gr.render(inputs=chosen)
        def details(*names: str):
            made = {name: controls.knobs(name) for name in names if name != controls.NOTHING}
            values = []
            for name, mine in made.items():
                with gr.Accordion(f"Fields of {name}", open=False, key=f"{name}-fields"), gr.Row():
                    for knob in mine:
                        with gr.Column(min_width=180):
                            values.append(knob.control())
            running = run.click(
                partial(ask, made),
                [*asked, *chosen, *shares, *values],
                outputs,
                show_progress="minimal",
                show_progress_on=[bars],
                **MODEL_TURN,
                **PLAIN,
            )
            stop.click(None, cancels=[running], **PLAIN)


def _compare_tab(asker: Asker, asked: list[gr.components.Component], alert: gr.HTML) -> None:
    with gr.Row():
        every = [name for stage in controls.STAGES for name in controls.names(stage)]
        names = gr.Dropdown(every, value=COMPARED, multiselect=True, label="Policies", elem_id="compared", scale=2)
        share = gr.Slider(1, 100, value=11, step=1, label="Tokens kept, %", elem_id="compare-keep", scale=1)
    run = gr.Button("Compare", variant="primary", elem_id="compare-run")
    bars = gr.HTML(elem_id="compare-bars")
    grid = gr.Gallery(
        label="Kept",
        show_label=False,
        columns=3,
        height=None,
        elem_id="compare-grid",
        visible=False,
        object_fit="contain",
        buttons=["fullscreen"],
    )

    def compare(path, question, model, frames, new, chosen, keep):
        yield {alert: "", bars: "", grid: gr.update(visible=False)}
        with _sentence() as said:
            given = read(path, frames)
            asks = Question(given, question, model, new)
            ways = {name: [controls.policy(name, keep)] for name in chosen}
            answers, drawn, failed = {}, [], []
            for name, answer in asker.ask(asks, {"dense": [], **ways}):
                if answer.error:
                    failed.append(f"{name}: {answer.error}")
                if not answer.ms:
                    continue
                answers["dense" if answer.report is None else f"{name}: {answer.text}"] = answer
                if answer.report and (whole := pictures.kept(given, answer.report).whole) is not None:
                    counts = f"{answer.report.kept} of {answer.report.total}"
                    drawn.append((whole, f"{name}, {counts}: {answer.text}"))
                yield {bars: pictures.bars(answers), grid: gr.update(value=drawn, visible=bool(drawn))}
            if failed:
                yield {alert: _said("\n".join(failed))}
        if said:
            yield {alert: said[0]}

    run.click(compare, [*asked, names, share], [alert, bars, grid], show_progress_on=[bars], **MODEL_TURN, **PLAIN)


def _pareto_tab() -> None:
    start = next(iter(front.SETS))
    with gr.Row():
        which = gr.Dropdown(list(front.SETS), value=start, label="Questions about", elem_id="front-set")
        axis = gr.Dropdown(front.axes(start), value=front.KEPT, label="Against", elem_id="front-axis")
    chosen = gr.Dropdown(
        front.policies(start), value=front.first(start), multiselect=True, label="Policies", elem_id="front-policies"
    )

    def plot(which, chosen, axis):
        return gr.LinePlot(
            front.table(which, chosen, axis),
            x=axis,
            y=front.RIGHT,
            color="policy",
            title=f"Embedded model, held-out {which}; dense {front.dense(which):.1f} %",
            tooltip="all",
            height=420,
        )

    drawn = plot(start, front.first(start), front.KEPT)
    table = gr.Dataframe(front.table(start, front.first(start), front.KEPT), label="Measured", max_height=320)

    def other(which):
        found = front.first(which)
        return (
            gr.Dropdown(front.axes(which), value=front.KEPT),
            gr.Dropdown(front.policies(which), value=found),
            plot(which, found, front.KEPT),
            front.table(which, found, front.KEPT),
        )

    def redraw(which, chosen, axis):
        return plot(which, chosen, axis), front.table(which, chosen, axis)

    quiet = {"show_progress": "hidden", **PLAIN}
    which.input(other, which, [axis, chosen, drawn, table], **quiet)
    for one in (chosen, axis):
        one.input(redraw, [which, chosen, axis], [drawn, table], **quiet)


@contextmanager
def _sentence() -> Iterator[list[str]]:
    """A list that holds what is to be said of an error, if there was one: the page stays."""
    said: list[str] = []
    try:
        yield said
    except TokenPruneError as error:
        said.append(_said(error))
    except Exception as error:
        logging.exception("unforeseen")
        said.append(_said(f"This failed for a reason that nobody foresaw: {type(error).__name__}: {error}"))


def _said(error: object) -> str:
    lines = "<br>".join(escape(line) for line in str(error).splitlines())
    return f'<div class="said" role="alert">{lines}</div>'


def _questions(name: str) -> list[str]:
    listed = json.loads((SAMPLES / ("clips.json" if name.startswith("clip") else "samples.json")).read_text())
    return [one["question"] for one in next(one for one in listed if one["file"] == name)["questions"]]


def _thumbnail(name: str) -> Image.Image:
    return Image.fromarray(read(str(SAMPLES / name), 3).frames[-1])
