"""The errors of `./dev`."""


class DevError(Exception):
    """One sentence that says what went wrong, with its value, and what to do next."""


class BrokenOff(DevError):
    """Something was given up because something else failed. It is never the reason to show."""
