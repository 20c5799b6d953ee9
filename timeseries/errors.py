"""The one exception that the reader of a data file raises."""


class DataError(ValueError):
    """A data file cannot be used as it is; the text says where (line, column) and what to do, in one sentence."""
