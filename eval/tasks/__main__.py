"""`python -m tokenprune.eval.tasks --out FOLDER [--task NAME] [--count N]`: write the folder for `--include_path`."""

import argparse
from pathlib import Path

from ...errors import TokenPruneError
from . import TASKS, built
from .build import named


def main() -> None:
    parser = argparse.ArgumentParser(prog="tokenprune.eval.tasks", description="Write local tasks for lmms-eval.")
    parser.add_argument("--out", type=Path, required=True, help="folder, for lmms-eval's --include_path")
    parser.add_argument("--task", action="append", help=f"only this one of {', '.join(TASKS)}; may be repeated")
    parser.add_argument("--count", type=int, help="documents of every task; all unless given")
    given = parser.parse_args()
    try:
        folder = built(given.out, given.task, count=given.count)
    except TokenPruneError as error:
        parser.error(str(error))
    print(f"python -m lmms_eval --include_path {folder} --tasks {','.join(named(given.task))} --model ...")


if __name__ == "__main__":
    main()
