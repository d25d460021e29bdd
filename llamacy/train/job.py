"""A run as it is asked for: one frozen record, made from flags by the command, or from a caller's arguments."""

from dataclasses import dataclass, field

from llamacy.model.loading import Loading
from llamacy.train.options import TrainOptions


@dataclass(frozen=True)
class Job:
    """What to train on what, and where the result goes.

    model             path of the model's file; loading: how it is loaded
    options           how to train; chosen: the names of its fields that were set on purpose, for the others give way to
                      an adapter to start from
    whole_context     take the model's own context instead of options.n_ctx
    train_data        paths, with :WEIGHT behind or not; none: the sample data. val_data: of samples to measure with
    sample_start      where a sample of a plain text begins; "": windows of the context
    keep_empty        teach empty answers, their end alone; max_samples: of each file no more than its first so many
    chat_template     how messages are written out, a name or a file; None: the model's own
    template_kwargs   what it is given besides the messages, by name; a record's own values go first
    init_lora         path of an adapter to start from
    checkpoint_in     path of a checkpoint to go on from if it is there; resume: from the run's own, which must be there
    outdir, lora_out, save_path, checkpoint_out    see Outputs; lora_format too, None: gguf, with DoRA peft
    log_json, plot, report, tensorboard     paths of a log, a picture, a page, and of a folder for TensorBoard
    sample_prompts    how many prompts base and adapter are to answer at the end, and every sample_every steps, 0 = not
    max_ram           bytes to stay below; None: the free memory
    verbose           show the first sample token by token
    """

    model: str
    options: TrainOptions
    loading: Loading = field(default_factory=lambda: Loading(activations="int16"))
    chosen: frozenset = frozenset()
    whole_context: bool = False

    train_data: tuple = ()
    val_data: tuple = ()
    sample_start: str = ""
    include_sample_start: bool = False
    keep_empty: bool = False
    max_samples: int | None = None
    chat_template: str | None = None
    template_kwargs: dict = field(default_factory=dict)

    init_lora: str | None = None
    checkpoint_in: str | None = None
    resume: bool = False

    outdir: str | None = None
    lora_out: str | None = None
    save_path: str | None = None
    checkpoint_out: str | None = None
    lora_format: str | None = None
    log_json: str | None = None
    plot: str | None = None
    report: str | None = None
    tensorboard: str | None = None
    sample_prompts: int = 0
    sample_every: int = 0
    max_ram: int | None = None
    verbose: bool = False
