"""`tokenprune list | show | run`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import InputError, InvalidArgumentError, TokenPruneError, UnsupportedModelError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from .policies import Policy
    from .policies.base import Need

USER_ERROR = 2  # exit code

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language models that answer with a fraction of their visual tokens.",
)


@contextmanager
def one_sentence():
    """An error that the user can mend becomes one sentence on stderr and exit code 2."""
    try:
        yield
    except TokenPruneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from None


def open_image(path: Path) -> Image:
    """The picture in a file, decoded, RGB.

    Raises:
        InputError: no such file, no image, or only the beginning of one.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise InputError(f"image={str(path)!r} is no file: give the path of an image.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"image={str(path)!r} is not an image that Pillow can read: give a PNG or JPEG.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image={str(path)!r} cannot be decoded ({error}): give an intact file.") from None


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
    keep: Annotated[str, typer.Option(help="Budget: 64 (tokens) or 0.25 (share).")] = "0.25",
    per: Annotated[str, typer.Option(help="What the budget is counted over: image, crop, frame or prompt.")] = "image",
    fields: Annotated[list[str] | None, typer.Option("--set", help="A field of the policy: theta=0.5.")] = None,
    positions: Annotated[str, typer.Option(help="Position ids of the kept tokens: original or compact.")] = "original",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:0; the default is the GPU if there is one.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
) -> None:
    """Answer a question about images with a pruned model, and report what was pruned."""
    from rich.console import Console

    from .wrap import wrap

    pruning = make_policy(policy, {"keep": number(keep), "per": per, **dict(map(assignment, fields or []))})
    if not prompt.strip():
        raise InputError("prompt='' is empty: give a question.")
    pictures = [open_image(path) for path in image]
    loaded, processor = load(model, dtype=dtype, device=device)
    tokenizer = getattr(processor, "tokenizer", None)
    with wrap(loaded, pruning, positions=positions, tokenizer=tokenizer, timing=True) as handle:
        text = with_images(processor, prompt, len(pictures))
        handle.instruction = None if text == prompt else prompt
        begun = text.startswith(getattr(tokenizer, "bos_token", None) or "\0")  # by the chat template
        inputs = processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=not begun)
        inputs = inputs.to(loaded.device, dtype=loaded.dtype)
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


def assignment(text: str) -> tuple[str, Any]:
    """`"theta=0.5"` -> ("theta", 0.5)"""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError(f"--set {text!r} has no '=': give NAME=VALUE, such as theta=0.5.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def make_policy(name: str, fields: dict[str, Any]) -> Policy:
    """The policy `name` with these fields.

    Raises:
        TokenPruneError: unknown name or field, or a value the field cannot take.
    """
    from .registry import get_policy

    cls = get_policy(name)
    types = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for field, value in fields.items():
        if field not in known:
            hint = nearest(field, known) or f": its fields are {', '.join(known)}"
            raise InvalidArgumentError(f"--set {field}={value} names no field of {name!r}{hint}.")
        if not _plain(types[field], value):
            wanted = inspect.formatannotation(types[field])
            raise InvalidArgumentError(
                f"--set {field}={value!r} is a {type(value).__name__}, the field takes {wanted}: give such a value, "
                "or wrap the model in Python."
            )
    return cls(**fields)


def load(model: str, *, dtype: str = "auto", device: str = "") -> tuple[Any, Any]:
    """A vision-language model in eval mode and its processor, from a folder or the hub.

    Raises:
        InputError: nothing there, or nothing that can be loaded.
        UnsupportedModelError: it takes no images.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.utils.logging import disable_progress_bar

    dtypes = ("auto", "float32", "float16", "bfloat16")
    if dtype not in dtypes:
        raise InvalidArgumentError(f"dtype={dtype!r} is not one of {', '.join(dtypes)}{nearest(dtype, dtypes)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device={device!r} cannot be used ({_line(error)}): try cpu.") from None
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(model)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UnsupportedModelError(
                f"model={model!r} is a {config.model_type!r}, which takes no images: give a vision-language model."
            )
        processor = AutoProcessor.from_pretrained(model)
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise InputError(f"model={model!r} holds no loadable checkpoint ({_line(error)}).") from None
        raise InputError(
            f"model={model!r} is neither a folder here nor a model that can be fetched from the hub: check the name."
        ) from None
    return loaded.to(device).eval(), processor


def with_images(processor: Any, prompt: str, images: int) -> str:
    """The prompt as the model reads it, one placeholder per image: by the chat template if there is one, else in front.

    Raises:
        InputError: the prompt has placeholders of its own, and not as many as images.
        UnsupportedModelError: the processor names no placeholder and has no chat template.
    """
    placeholder = getattr(processor, "image_token", None)
    if placeholder and (found := prompt.count(placeholder)):
        if found != images:
            raise InputError(
                f"prompt has {found} times {placeholder!r} for {images} images: give one per image, or none."
            )
        return prompt
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    if not placeholder:
        raise UnsupportedModelError(
            f"the processor {type(processor).__name__} has neither a chat template nor an image token: use the model's "
            "own prompt format from Python."
        )
    return placeholder * images + "\n" + prompt


def _needs(policy: Policy) -> str:
    return ", ".join(sorted(map(_need, policy.needs))) or "nothing"


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
            meanings[name] = meaning
        elif name:
            meanings[name] += " " + line.strip()
    return meanings


def _plain(hint: Any, value: Any) -> bool:
    """Whether a value from the command line fits a field; none fits a field that takes an object or a function."""
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # the policy itself suggests the nearest
    plain = [option for option in typing.get_args(hint) or (hint,) if option in (int, float, bool, str, type(None))]
    return type(value) in plain or (type(value) is int and float in plain)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def main() -> None:
    app()
