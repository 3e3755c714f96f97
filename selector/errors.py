"""The one error that users see; it names the cause and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class SelectorError(ValueError):
    """Raised for anything that a caller can put right; the message says how."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The known names, for a message, those first that look like what was meant.

    >>> nearest("layer1.conv2", ["stem", "layer1.conv1", "layer1.conv3"])
    'did you mean layer1.conv3 or layer1.conv1? known: stem, layer1.conv1, layer1.conv3'
    """
    names = list(known)
    close = get_close_matches(str(name), names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}known: {', '.join(names)}"
