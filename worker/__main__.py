"""`python -m worker`: the command line, where no script is installed (in the image)."""

from worker.cli import main

main()
