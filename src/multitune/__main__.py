"""`python -m multitune`, the same as the command `multitune`; accelerate launch -m needs it."""

from __future__ import annotations

from multitune.cli import main

if __name__ == "__main__":
    main()
