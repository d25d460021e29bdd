"""A run's numbers for TensorBoard, through its own package's writer (the `tensorboard` extra)."""

import contextlib
import math
import time

from llamacy.errors import LlamacyError

# Of a step's row what is drawn: its name there. Everything else that is a number has the folder "other".
NAMES = {"loss": "train/loss", "lr": "train/learning_rate", "grad_norm": "train/grad_norm", "epoch": "train/epoch",
         "val_loss": "validation/loss", "tokens_per_second": "speed/tokens_per_second",
         "flops_per_second": "speed/flops_per_second", "flop_utilisation": "speed/flop_utilisation",
         "peak_rss_bytes": "memory/peak_rss_bytes"}  # fmt: skip


def check_tensorboard():
    """LlamacyError, naming the extra, where TensorBoard's package is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise LlamacyError(
            "--tensorboard: needs the tensorboard package: pip install 'llamacy[tensorboard]', or leave it away"
        ) from error


class TensorBoardLog:
    """Write rows as RunLog takes them into a file of events in `folder`; `warn` is told once where that fails.

    done: of a run that goes on the steps that were done: TensorBoard then leaves out what an earlier file has of later
    ones.
    """

    def __init__(self, folder, warn, done=None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder, self._warn, self._event = folder, warn, Event
        try:
            self._writer = EventFileWriter(folder)
        except OSError as error:
            raise LlamacyError(
                f"{folder}: cannot be written: {error.strerror}; choose another --tensorboard"
            ) from error
        if done is not None:
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=done + 1, session_log=log))

    def write(self, row):
        """Add the numbers of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            return
        step = row["step"]
        self._add(
            step, {NAMES.get(name, f"other/{name}"): value for name, value in row.items() if name != "step"}, Summary
        )
        if "val_loss_before" in row:
            self._add(0, {"validation/loss": row["val_loss_before"]}, Summary)

    def amend(self, row):
        """Add what is found at the end: perplexities, by data and model."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = row.get("perplexity", {})
        pairs = {f"perplexity/{data}_{who}": each[who] for data, each in found.items() for who in each}
        self._add(row["step"], pairs, Summary)

    def _add(self, step, values, summary):
        good = {
            name: value for name, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)
        }
        if self._writer is None or not good:
            return
        made = summary(value=[summary.Value(tag=name, simple_value=value) for name, value in good.items()])
        try:
            self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=made))
            self._writer.flush()
        except OSError as error:
            self._warn(f"warning: {self._folder}: cannot be written: {error.strerror}; training goes on without it")
            self._drop()

    def _drop(self):
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError):
            writer.close()

    def close(self):
        """Close the file."""
        if self._writer is not None:
            self._drop()


class Logs:
    """Several logs as one."""

    def __init__(self, logs):
        self._logs = logs

    def write(self, row):
        for log in self._logs:
            log.write(row)

    def amend(self, row):
        for log in self._logs:
            log.amend(row)

    def close(self):
        for log in self._logs:
            log.close()
