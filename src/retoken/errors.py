"""Named errors. Each message is one line: the option or file, what was found, what is accepted."""


class RetokenError(Exception):
    """Base of every error that is the caller's to mend; the command line exits with code 2 on it."""


class ConfigError(RetokenError, ValueError):
    """An option has a value that is not accepted."""


class AttachError(RetokenError, ValueError):
    """A model cannot carry token-indexed parameters, or was called in a way that hides its token ids."""


class DataError(RetokenError, ValueError):
    """A corpus, tokenizer or token store is missing, broken or does not fit."""


class CheckpointError(RetokenError, ValueError):
    """A checkpoint is missing, truncated, foreign or does not fit the model."""


class TrainingError(RetokenError, RuntimeError):
    """Training stopped: a non-finite loss, a full disk, or a run folder that belongs to another run."""
