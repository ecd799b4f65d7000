"""The error for an image that cannot be read."""


class UnreadableError(Exception):
    """A file is no image, is damaged, or is too large; the message gives the reason."""
