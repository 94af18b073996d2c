"""The one error that `./dev` shows to people. Knows nothing else."""


class DevError(Exception):
    """One sentence that names what went wrong, with its value, and what to do next."""


class BrokenOff(DevError):
    """Something was given up because something else had failed: never the reason to show."""
