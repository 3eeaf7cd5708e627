"""When several processes end a run."""

import os
import signal

import torch

from model.distributed import Ranks
from model.stopping import StopSignals


class SignalledWhileAgreeing(Ranks):
    """A signal comes to this process once, after it has told the others that it was not asked to stop."""

    sent = False

    def any(self, flag: bool) -> bool:
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().any(flag)


def test_a_signal_while_the_ranks_agree_counts_at_the_next_step():
    with StopSignals(SignalledWhileAgreeing(torch.device("cpu"))) as stop:
        assert not stop.asked() and stop.number == signal.SIGTERM
        assert stop.asked()
