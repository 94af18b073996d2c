"""`python -m worker`: the command line, for places where no script is installed, such as the
image.
"""

from worker.cli import main

main()
