"""The one exception that the reader of audio, or of an audio model's file, raises."""


class AudioError(ValueError):
    """A recording, an option or a checkpoint cannot be used as it is; the text says why, in one sentence."""
