"""``python -m jaxmerge``: the command line."""

from jaxmerge.cli import main

if __name__ == "__main__":
    main()
