"""`tokenprune list | show | run | train`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .command import assignment, encode, load, make_policy, one_sentence, open_image
from .errors import InputError, InvalidArgumentError
from .train_cli import train

if TYPE_CHECKING:
    from .policies import Policy
    from .policies.base import Need

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language models that answer with a fraction of their visual tokens.",
)
app.add_typer(train, name="train")


@app.command("list")
@one_sentence()
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell-style wildcard, such as '*prune*'.")] = "*",
) -> None:
    """List the policies."""
    from rich.console import Console
    from rich.table import Table

    from .registry import get_policy, list_policies

    names = list_policies(pattern)
    if not names:
        raise InputError(f"pattern={pattern!r} matches no policy: known are {', '.join(list_policies())}.")
    table = Table("policy", "stage", "needs", "what it does", box=None, header_style="bold", pad_edge=False)
    for name in names:
        policy = get_policy(name)
        table.add_row(name, policy.stage, _needs(policy()), inspect.getdoc(policy).splitlines()[0])
    Console().print(table)


@app.command()
@one_sentence()
def show(policy: Annotated[str, typer.Argument(help="Name of a policy, see `tokenprune list`.")]) -> None:
    """Show one policy: formula, fields with their defaults, source, needs, cost, when to use it and its limits."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .policies import Policy
    from .registry import get_policy

    cls = get_policy(policy)
    console = Console(highlight=False)
    console.print(f"[bold]{policy}[/bold]  [dim]{cls.__module__}.{cls.__qualname__}[/dim]\n")
    for block in _blocks(cls):
        if not block.startswith("Attributes:"):
            console.print(_joined(block) + "\n", markup=False)
    inherited = [block for base in reversed(cls.__mro__[:-1]) for block in _blocks(base)]
    about = {}
    for block in inherited:
        about |= _attributes(block) if block.startswith("Attributes:") else {}
    table = Table("field", "type", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    common = {field.name for field in dataclasses.fields(Policy)}
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in common):
        table.add_row(field.name, str(field.type), _default(field), about.get(field.name, ""))
    console.print(table, markup=False)
    facts = Table("", "", box=None, show_header=False, pad_edge=False)
    words = {"stage": cls.stage, "needs": _needs(cls()), "cost": cls.cost, "when": cls.when, "limits": cls.limits}
    for name, word in words.items():
        facts.add_row(f"[bold]{name}[/bold]", escape(word))
    console.print()
    console.print(facts)


@app.command()
@one_sentence()
def run(
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id of a vision-language model.")],
    image: Annotated[list[Path], typer.Option(help="Image file; repeat for several.")],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    policy: Annotated[str, typer.Option(help="Name of a policy, see `tokenprune list`.")] = "cdpruner",
    keep: Annotated[str, typer.Option(help="Budget: 64 (tokens) or 0.25 (share); 0.25 unless --set keeps=....")] = "",
    per: Annotated[str, typer.Option(help="What the budget is counted over: image, crop, frame or prompt.")] = "image",
    fields: Annotated[list[str] | None, typer.Option("--set", help="A field of the policy: theta=0.5.")] = None,
    positions: Annotated[str, typer.Option(help="Of kept tokens: original or compact; else as the policy does.")] = "",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:0; the default is the GPU if there is one.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    timing: Annotated[bool, typer.Option("--timing", help="Measure the selection, after a first try.")] = False,
) -> None:
    """Answer a question about images with a pruned model, and report what was pruned."""
    from rich.console import Console

    from .wrap import wrap

    given = dict(map(assignment, fields or []))
    budget = {"keep": number(keep)} if keep else {} if "keeps" in given else {"keep": 0.25}
    pruning = make_policy(policy, {**budget, "per": per, **given})
    if not prompt.strip():
        raise InputError("prompt='' is empty: give a question.")
    pictures = [open_image(path) for path in image]
    loaded, processor = load(model, dtype=dtype, device=device)
    tokenizer = getattr(processor, "tokenizer", None)
    with wrap(loaded, pruning, positions=positions or None, tokenizer=tokenizer, timing=timing) as handle:
        inputs, placed = encode(processor, loaded, prompt, pictures)
        handle.instruction = prompt if placed else None
        handle.image_sizes = [picture.size for picture in pictures]
        if timing:  # the first forward is slow for other reasons
            loaded.generate(**inputs, max_new_tokens=1, do_sample=False)
        generated = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        report = handle.report()
    answer = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    console = Console(highlight=False, soft_wrap=True)
    console.print(answer.strip(), style="bold", markup=False)
    console.print(str(report), style="dim", markup=False)


def number(text: str) -> int | float:
    """`"64"` is a count, `"0.25"` a share.

    Raises:
        InvalidArgumentError: neither.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise InvalidArgumentError(f"keep={text!r} is no number: give an int (tokens) or a float in (0, 1] (share).")


def _needs(policy: Policy) -> str:
    return getattr(policy, "reads", "") or ", ".join(sorted(map(_need, policy.needs))) or "nothing"


def _need(need: Need) -> str:
    if isinstance(need, str):
        return need
    attention = {"cls": "of the class token", "all": "received", "auto": "of the class token or received"}
    what = {"keys": "keys", "class_token": "class token", "attention": f"attention {attention[need.queries]}"}
    layer = f"{need.layer:.1%} deep" if isinstance(need.layer, float) else need.layer
    return f"{what[need.what]} (vision layer {'that is read' if layer is None else layer})"


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if field.default is dataclasses.MISSING else repr(field.default)


def _blocks(cls: type) -> list[str]:
    """Paragraphs of a class's own docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")


def _joined(block: str) -> str:
    """A paragraph without its line breaks, but for indented lines."""
    return re.sub(r"\n(?! )", " ", block)


def _attributes(block: str) -> dict[str, str]:
    """`name: meaning` entries of the Attributes section of a docstring."""
    meanings: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(block.removeprefix("Attributes:").strip("\n")).splitlines():
        if line and not line.startswith(" "):
            name, _, meaning = line.partition(": ")
            meanings |= dict.fromkeys(name.split(", "), meaning)
        elif name:
            meanings |= {one: f"{meanings[one]} {line.strip()}" for one in name.split(", ")}
    return meanings


def main() -> None:
    app()
