"""`python -m edge` is `edgekit`."""

from edge.cli import main

if __name__ == "__main__":
    main()
