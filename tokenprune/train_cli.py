"""`tokenprune train debias | schedule | covipal | adtp | ftp`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoints import load
from .command import assignment, make_policy, one_sentence
from .encoding import encode
from .errors import InputError
from .readers import open_image

if TYPE_CHECKING:
    from .calibrate.watch import Batch

Model = Annotated[str, typer.Option(help="Checkpoint folder or hub id of a vision-language model.")]
Images = Annotated[Path, typer.Option(help="Folder of pictures, searched with its sub-folders.")]
Prompts = Annotated[
    str,
    typer.Option(
        help="What to ask: text, or a file with a question per line. The shorter of questions and pictures is repeated."
    ),
]
Out = Annotated[Path, typer.Option(help="JSON file to write.")]
Limit = Annotated[int, typer.Option(min=1, help="Most prompts to look at.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:0; the default is the GPU if there is one.")]

train = typer.Typer(
    no_args_is_help=True,
    help="Fit what policies inside the language model use to a model, on pictures and questions of your own.",
)


@train.command()
@one_sentence()
def debias(
    model: Model,
    images: Images,
    prompts: Prompts,
    out: Out = Path("trend.json"),
    policy: Annotated[str, typer.Option(help="Policy whose scores are to be freed of their trend.")] = "fastv",
    fields: Annotated[list[str] | None, typer.Option("--set", help="A field of the policy: layer=3.")] = None,
    kind: Annotated[str, typer.Option(help="Form of the trend: exponential or cubic.")] = "exponential",
    padding: Annotated[
        str, typer.Option(help="Leave out padding of pictures pasted on a square: area, crop or bilinear.")
    ] = "",
    limit: Limit = 1000,
    dtype: Dtype = "auto",
    device: Device = "",
) -> None:
    """Fit how a policy's scores grow from the first to the last token of a picture, whatever it shows.

    Use it with debiased(FastV(keep=64), trend="trend.json"), or with
    tokenprune run --policy debiased --set inner=fastv --set trend=trend.json.
    """
    from .calibrate import fit_trend

    pruning = make_policy(policy, dict(map(assignment, fields or [])))
    _writable(out)
    batches = Batches(model, images, prompts, limit=limit, dtype=dtype, device=device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trend = fit_trend(batches.model, pruning, batches, kind=kind, padding=padding or None)
    for one in caught:
        if issubclass(one.category, UserWarning) and "trend" in str(one.message):
            typer.echo(f"warning: {one.message}", err=True)
    trend.save(out)
    numbers = ", ".join(f"{c:.4f}" for c in trend.coefficients)
    typer.echo(
        f"{out}: {kind} ({numbers}) over a picture, R² {trend.facts['r2']:.3f}, {trend.facts['samples']} pictures"
    )


@train.command()
@one_sentence()
def schedule(
    model: Model,
    images: Images,
    prompts: Prompts,
    out: Out = Path("schedule.json"),
    drops: Annotated[int, typer.Option(min=1, help="How many layers drop tokens.")] = 3,
    coverage: Annotated[float, typer.Option(help="Share of the attention that the tokens left should hold.")] = 0.9,
    limit: Limit = 1000,
    dtype: Dtype = "auto",
    device: Device = "",
) -> None:
    """Find the layers where the text changes how much it looks at the picture, and how many tokens it looks at there.

    Use it with AdaptInfer.from_schedule("schedule.json").
    """
    from .calibrate import detect_schedule

    _writable(out)
    batches = Batches(model, images, prompts, limit=limit, dtype=dtype, device=device)
    found = detect_schedule(batches.model, batches, drops=drops, coverage=coverage)
    out.write_text(json.dumps(found, indent=2) + "\n")
    steps = ", ".join(
        f"layer {layer} keeps {keep:.1%}" for layer, keep in zip(found["layers"], found["keeps"], strict=True)
    )
    typer.echo(f"{out}: {steps}, {found['samples']} prompts")


@train.command()
@one_sentence()
def covipal(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            help='"shapes", "easy_vqa", or a file with a line {"image": path, "question": ..., "answer": ...} each.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the module; an unfinished training there goes on.")] = Path(
        "covipal"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 2575,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step, in every process.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    hidden: Annotated[int, typer.Option(help="Width of the module; 0: half of the model's, at most 512.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the module and the budgets.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Autocast to bfloat16.")] = False,
    dtype: Dtype = "auto",
    device: Device = "",
) -> None:
    """Train a module that chooses visual tokens by picture and question, for few tokens.

    Use it with CoViPAL(predictor="covipal", keep=0.05), or with
    tokenprune run --policy covipal --set predictor=covipal.
    """
    from .learn import Plan, Recipe, examples, train_covipal

    _folder(out)
    given = examples(data)
    plan = Plan(steps=steps, rate=rate, accumulate=accumulate, seed=seed, save_every=save_every, bf16=bf16)
    loaded, processor = load(model, dtype=dtype, device=device)
    recipe = Recipe(batch=batch, hidden=hidden or None)
    _, facts = train_covipal(loaded, processor, given, out, plan=plan, recipe=recipe, data=data)
    typer.echo(
        f"{out}: {facts['parameters']:,} parameters, {facts['seconds'] / 60:.1f} minutes, {facts['extra_mib']:.0f} MiB "
        f"beside the frozen model; at the last step {_losses(facts)}"
    )


@train.command()
@one_sentence()
def adtp(
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of a BERT-type encoder of texts.")],
    data: Annotated[str, typer.Option(help='"pydoc", or a file with a text in every line.')],
    out: Annotated[Path, typer.Option(help="Folder of the predictors; an unfinished training there goes on.")] = Path(
        "adtp"
    ),
    pool: Annotated[str, typer.Option(help="What makes an embedding: mean of tokens, or first; heads know.")] = "mean",
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 520,
    batch: Annotated[int, typer.Option(min=1, help="Texts a step that runs the encoder, in every process.")] = 8,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    hidden: Annotated[int, typer.Option(help="Width of the predictors.")] = 64,
    tokens: Annotated[int, typer.Option(help="Of a text at most; what is longer is cut.")] = 128,
    price: Annotated[float, typer.Option(help="Of a token kept, in distance of the answer: less keeps more.")] = 0.3,
    save_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the predictors and the draws.")] = 0,
    device: Device = "",
) -> None:
    """Train what chooses which tokens of a text an encoder reads, and how many, without labels.

    Use it with wrap(model, ADTP(predictor="adtp")), or ADTP(predictor="adtp", ratio=0.25).
    """
    from .learn import Plan, SaliencyRecipe, load_encoder, read_texts, train_adtp

    _folder(out)
    texts = read_texts(data)
    plan = Plan(steps=steps, rate=rate, seed=seed, save_every=save_every)
    recipe = SaliencyRecipe(batch=batch, hidden=hidden, tokens=tokens, price=price, pool=pool)
    loaded, tokenizer = load_encoder(model, device)
    _, facts = train_adtp(loaded, tokenizer, texts, out, plan=plan, recipe=recipe, data=data)
    typer.echo(
        f"{out}: {facts['parameters']:,} parameters, {facts['of']} texts, {facts['seconds'] / 60:.1f} minutes; at the "
        f"last step {_losses(facts)}"
    )


@train.command()
@one_sentence()
def ftp(
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of a decoder-only language model.")],
    data: Annotated[str, typer.Option(help='"pydoc", or a file with a text in every line.')],
    out: Annotated[Path, typer.Option(help="Folder of the router; an unfinished training there goes on.")] = Path(
        "ftp"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 120,
    batch: Annotated[int, typer.Option(min=1, help="Texts a step, in every process.")] = 1,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-3,
    prompt: Annotated[int, typer.Option(min=4, help="Tokens of a text that may skip blocks.")] = 80,
    answer: Annotated[int, typer.Option(min=1, help="Tokens behind them, to be predicted as by the whole model.")] = 32,
    most: Annotated[float, typer.Option(help="Largest mean share of pairs (token, block) to skip.")] = 0.4,
    whole: Annotated[int, typer.Option(min=0, help="First blocks that no token skips.")] = 4,
    generations: Annotated[int, typer.Option(min=0, help="Of the search for every block's share.")] = 4,
    save_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the router, the search and the draws.")] = 0,
    device: Device = "",
) -> None:
    """Search how many tokens skip each block of a language model, and train what chooses which.

    Use it with wrap(model, FTP(predictor="ftp", sparsity=0.2)).
    """
    from .learn import Plan, RouterRecipe, Search, load_decoder, read_texts, search_schedules, train_ftp

    _folder(out)
    texts = read_texts(data)
    plan = Plan(steps=steps, rate=rate, seed=seed, save_every=save_every)
    recipe = RouterRecipe(batch=batch, prompt=prompt, answer=answer, sparsities=(most / 4, most))
    search = Search(generations=generations, prompt=prompt, answer=answer, whole=whole, seed=seed)
    loaded, tokenizer = load_decoder(model, device)
    schedules, found = search_schedules(loaded, tokenizer, texts, (most / 2, most), search=search)
    _, facts = train_ftp(loaded, tokenizer, texts, out, plan=plan, schedules=schedules, recipe=recipe, data=data)
    lost = ", ".join(f"{one['sparsity']:.0%} skipped {one['kl']:.3f}" for one in found["found"])
    typer.echo(
        f"{out}: {facts['parameters']:,} parameters, {facts['seconds'] / 60:.1f} minutes; oldest first {lost} (KL); at "
        f"the last step {_losses(facts)}"
    )


class Batches:
    """A model, and the arguments of its forward for pictures and questions, one prompt with one picture at a time."""

    def __init__(self, model: str, images: Path, prompts: str, *, limit: int, dtype: str, device: str):
        self.pictures, self.prompts, self.limit = _pictures(images), _questions(prompts), limit
        self.model, self.processor = load(model, dtype=dtype, device=device)

    def __iter__(self) -> Iterator[Batch]:
        from rich.console import Console
        from rich.progress import track

        count = min(self.limit, max(len(self.pictures), len(self.prompts)))
        pairs = islice(zip(cycle(self.pictures), cycle(self.prompts)), count)
        console = Console(stderr=True)
        for path, prompt in track(
            pairs, "looking", total=count, console=console, transient=True, disable=not console.is_terminal
        ):
            picture = open_image(path)
            inputs, _ = encode(self.processor, self.model, prompt, [picture])
            yield dict(inputs), [picture.size]


def _pictures(folder: Path) -> list[Path]:
    from PIL import Image

    if not folder.is_dir():
        raise InputError(f"images={str(folder)!r} is no folder: give one with pictures.")
    known = Image.registered_extensions()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not found:
        raise InputError(f"images={str(folder)!r} holds no picture: give a folder with PNG or JPEG files.")
    return found


def _questions(prompts: str) -> list[str]:
    """The lines of a file, or the text itself."""
    try:
        text = Path(prompts).read_text() if Path(prompts).is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"prompts={prompts!r} cannot be read ({error}): give a text file, or a question.") from None
    questions = [prompts] if text is None else text.splitlines()
    questions = [line.strip() for line in questions if line.strip()]
    if not questions:
        raise InputError(f"prompts={prompts!r} holds no question: give a line of text for each, or the text of one.")
    return questions


def _writable(out: Path) -> None:
    """Before anything is looked at for long."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"out={str(out)!r} cannot be written: give the path of a file in a folder that exists.")


def _folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is no folder: give one, or a new name.")


def _losses(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in facts["last"].items())
