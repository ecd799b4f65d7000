"""The error of one image."""


class UnreadableError(Exception):
    """A file that is no image, is damaged, or is larger than an image should be; says why."""
