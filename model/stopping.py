"""Asked to stop, a run ends after the step under way."""

import signal

from model.distributed import Ranks


class StopSignals:
    """While entered, hears SIGTERM and SIGINT; the second one interrupts at once. number: of the signal, or None."""

    def __init__(self, ranks: Ranks) -> None:
        self.number: int | None = None
        self._ranks = ranks

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def asked(self) -> bool:
        """Whether a rank was asked to stop; then all of them do after the same step. Every rank must ask."""
        # The common answer, not `number`: a signal that comes while the ranks agree is heard by one of them only.
        asked = self._ranks.any(self.number is not None)
        if asked and self.number is None:
            self.number = signal.SIGTERM
        return asked
