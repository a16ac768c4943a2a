"""``python -m regionroute.cli``: the ``regionroute`` command."""

from regionroute.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
