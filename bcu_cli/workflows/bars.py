"""The default listener of the public API: tqdm bars in a terminal or notebook, and notices in the log."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from bcu_cli.events import Notice, Progress

if TYPE_CHECKING:
    from bcu_cli.events import Event

_log = logging.getLogger("bcu_cli")


class Bars:
    """A listener that draws bars in a terminal or a notebook, and logs notices under ``bcu_cli``."""

    def __init__(self) -> None:
        self._seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bars: dict[int, Any] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Notice):
            _log.log(logging.WARNING if event.is_warning else logging.INFO, event.text)
        elif self._seen:
            self._draw(event)

    def _draw(self, event: Progress) -> None:
        if event.ended:
            if event.part in self._bars:
                self._bars.pop(event.part).close()
            return
        if event.part not in self._bars:
            from tqdm.auto import tqdm

            self._bars[event.part] = tqdm(desc=event.heading, leave=False)
        bar = self._bars[event.part]
        bar.total = event.total
        bar.set_description_str(event.heading, refresh=False)
        bar.set_postfix_str(" ".join(filter(None, (event.note, event.time_left))), refresh=False)
        bar.update(event.done - bar.n)
