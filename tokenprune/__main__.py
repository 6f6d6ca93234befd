"""`python -m tokenprune`, which `accelerate launch -m` can start."""

from .cli import main

if __name__ == "__main__":
    main()
