"""How a run shows itself to a person: one bar that is redrawn on a terminal, now and then a line elsewhere."""

import contextlib
import shutil
import sys
import time

# Without a terminal a line at most this often, in seconds, besides the first and the last step; in a long run rarer,
# so that a line is no less than this share of it.
INTERVAL = 2.0
SHARE = 1 / 200
# The pace is a running mean: the share of the newest step.
FRESH = 0.1
# The loss is smoothed by running means of these shares, a quick and a slow one; which of them is the higher is its
# trend, if they differ by more than a share of STEADY, and only after ENOUGH steps.
MEANS, STEADY, ENOUGH = (0.1, 0.03), 0.01, 20


class Progress:
    """Show steps as they are done: loss, speed and time left, on `stream` (stderr).

    `clock` and `terminal` are for tests.
    """

    def __init__(self, n_epochs, *, stream=None, clock=time.monotonic, terminal=None):
        self.n_epochs = n_epochs
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.terminal = self.stream.isatty() if terminal is None else terminal
        self.width = 0
        self.begin(0)

    def begin(self, n_steps, n_done=0):
        """Start the clock of a run of `n_steps`, of which `n_done` were done by an earlier run that it goes on from."""
        self.n_steps, self.first = n_steps, n_done + 1
        self.began = self.last = self.shown = self.clock()
        self.seconds_per_step = None
        self.means = [None, None]

    def step(self, step, epoch, loss, tokens_per_second):
        """Say that step `step` (from 1) of epoch `epoch` (from 1) is done."""
        now = self.clock()
        took, self.last = now - self.last, now
        # The first step also pages the model in: it counts until there is another.
        known = self.seconds_per_step is not None and step > self.first + 1
        self.seconds_per_step = took + (1 - FRESH) * (self.seconds_per_step - took) if known else took
        left = clock_time(self.seconds_per_step * (self.n_steps - step))
        facts = [
            f"epoch {epoch}/{self.n_epochs}",
            f"step {step}/{self.n_steps}",
            f"loss {loss:.4f}{self._trend(step, loss)}",
            f"{tokens_per_second:.0f} tokens/s",
            f"{left} left" if step < self.n_steps else f"{clock_time(now - self.began)} in all",
        ]
        if self.terminal:
            self._draw(step, facts)
        elif step in (self.first, self.n_steps) or now - self.shown >= max(INTERVAL, SHARE * (now - self.began)):
            self.shown = now
            self._write("  ".join(facts) + "\n")

    def _trend(self, step, loss):
        """Return the smoothed loss and where it goes, "" before there are enough steps to say, or of a skipped one."""
        if loss != loss:
            return ""
        self.means = [loss if mean is None else mean + share * (loss - mean)
                      for mean, share in zip(self.means, MEANS, strict=True)]  # fmt: skip
        if step - self.first < ENOUGH:
            return ""
        quick, slow = self.means
        change = (quick - slow) / max(abs(slow), 1e-9)
        word = "steady" if abs(change) < STEADY else "rising" if change > 0 else "falling"
        return f" (mean {quick:.4f}, {word})"

    def _draw(self, step, facts):
        """Redraw the bar, in what the terminal's width leaves for it; facts that do not fit are left out."""
        columns = shutil.get_terminal_size().columns - 1
        while len(facts) > 1 and len("  ".join(facts)) > columns:
            facts.pop(0)
        text = "  ".join(facts)[:columns]
        room = min(30, columns - len(text) - 4)
        if room >= 5:
            filled = room * step // self.n_steps
            text = f"[{'=' * filled}{'-' * (room - filled)}]  {text}"
        self._write("\r" + text.ljust(self.width))
        self.width = len(text)

    def note(self, text):
        """Print a line of its own, above the bar."""
        if self.terminal and self.width:
            self._write("\r" + " " * self.width + "\r")
            self.width = 0
        self._write(text + "\n")

    def close(self):
        """Leave the bar as it is and begin a new line."""
        if self.terminal and self.width:
            self._write("\n")
            self.width = 0

    def _write(self, text):
        # A closed terminal, a `| tee` that the same Ctrl-C ended: the run, and what it has to save, is worth more.
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()


def clock_time(seconds):
    """Return seconds as 0:07, 12:34 or 3:21:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
