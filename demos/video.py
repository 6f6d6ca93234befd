"""A question about a video, answered from all of its tokens and from a quarter, and a picture of what was kept:
`python demos/video.py [--video F] [--question Q] [--policy P] [--keep K] [--out F]`."""

from pathlib import Path
from typing import Annotated

import typer

import tokenprune
from tokenprune.cli import one_sentence
from tokenprune.encoding import encode
from tokenprune.eval import shapes
from tokenprune.view import Fate, sheet

CLIP = shapes.CHECKPOINT.parent / "samples" / "clip-10057.mp4"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@one_sentence()
def main(
    video: Annotated[Path, typer.Option(help="Video, GIF or folder of pictures.")] = CLIP,
    question: Annotated[str, typer.Option(help="What is asked about it.")] = "which way does the purple circle move?",
    policy: Annotated[str, typer.Option(help="Name of a policy, see `tokenprune list`.")] = "vidcom2",
    keep: Annotated[float, typer.Option(help="Share of the visual tokens.")] = 0.25,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("video.png"),
) -> None:
    """Ask the embedded video model."""
    clip = tokenprune.read_video(video, frames=8, size=512)
    model, processor = shapes.load_video()
    inputs, _ = encode(processor, model, question, videos=[clip])
    for one in ("none", tokenprune.get_policy(policy)(keep=keep)):
        with tokenprune.wrap(model, one, tokenizer=processor.tokenizer) as handle:
            handle.instruction = question
            output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        report = handle.report()
        print(f"{question} {answer.split()[0]}, by {report.kept} of {report.total} visual tokens")
    sheet(clip.frames, Fate.of(report.units), title=f"{policy}: {video.name}", times=clip.times).save(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    app()
