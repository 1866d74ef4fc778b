"""``python -m pquant`` and the command ``pquant``: run jobs as ``run.py`` does, in any folder."""

from pquant.command_line import main

if __name__ == "__main__":
    main()
