"""``python -m fusionbench`` is the same as ``fusionbench``."""

from .cli import main

if __name__ == "__main__":
    main()
