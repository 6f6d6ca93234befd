"""`python -m tokenprune.eval.recipes [NAME ...] [--check] [--results FOLDER]`: list, print commands, check, compare."""

import argparse
from pathlib import Path

from ...errors import TokenPruneError
from . import benchmarks, check, command, commands, compared, measured, names, read, suites, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.recipes", description="What papers published, as commands.")
    parser.add_argument("name", nargs="*", help="recipe, suite or benchmark; all recipes unless given")
    parser.add_argument("--check", action="store_true", help="look up all names in the installed lmms-eval instead")
    parser.add_argument("--results", type=Path, help="folder of a run of the recipe, to be compared")
    given = parser.parse_args()
    if given.results and len(given.name) != 1:
        parser.error(f"--results {given.results} is of one recipe: name it")
    try:
        for name in given.name or names():
            print(_told(name, given.check, given.results))
    except TokenPruneError as error:
        parser.error(str(error))
    if not given.name:
        print(f"suites: {', '.join(suites())}; benchmarks: {', '.join(benchmarks())}")


def _told(name: str, checked: bool, results: Path | None) -> str:
    if name in suites() or name in benchmarks():
        return command(name)
    recipe = read(name)
    if checked:
        check(recipe)
        return f"{recipe.name}: all names are known"
    if results:
        return table(compared(recipe, measured(results)))
    return "\n".join([f"# {recipe.name}: {recipe.source}", *commands(recipe)])


if __name__ == "__main__":
    main()
