"""The one exception for input that cannot be used."""


class DataError(ValueError):
    """Images, a checkpoint or an option cannot be used as they are; the text says what is wrong and what to do."""
