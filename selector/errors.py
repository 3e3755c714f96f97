"""The one error that users see: it names the culprit and the way out."""


class SelectorError(ValueError):
    """Raised for anything that a caller can put right; the message says how."""
