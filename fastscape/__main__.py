"""``python -m fastscape``."""

from fastscape.cli import main

if __name__ == "__main__":
    main(prog_name="fastscape")
