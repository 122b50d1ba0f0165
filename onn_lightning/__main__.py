"""`python -m onn_lightning`: the `onn` command where its script is not on the path."""

from onn_lightning.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
