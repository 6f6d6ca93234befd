"""`tokenprune train ...` as tests run it."""

from typer.testing import CliRunner

from tokenprune import cli


def training(kind, defaults):
    """A function that runs the command with these options, and others instead of them."""

    def run(*options):
        words = [one for name, value in defaults.items() if name not in options for one in (name, value)]
        return CliRunner().invoke(cli.app, [str(one) for one in ["train", kind, *words, *options]])

    return run


def refused(result, words):
    """One sentence that has these words."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
