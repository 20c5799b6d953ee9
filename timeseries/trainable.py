"""What our GluonTS estimators have in common: `train` starts anew, `train_from` goes on from a predictor."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, Generic, TypeVar

from gluonts.model.estimator import Estimator
from gluonts.model.predictor import Predictor

Entries = Iterable[Mapping[str, Any]]
P = TypeVar("P", bound=Predictor)


class Trainable(Estimator, Generic[P]):
    """Of predictors of kind P; a kind of estimator says how in `_train`."""

    def train(
        self,
        training_data: Entries,
        validation_data: Entries | None = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
    ) -> P:
        """Fit to a dataset.

        Args:
            training_data: GluonTS data entries, of any lengths.
            validation_data: Series that choose and calibrate, and are not learnt from; None for the last part of each
                training series.
            shuffle_buffer_length, cache_data: Arguments of GluonTS; the data are held in memory and drawn at random in
                any case.
        Raises:
            ValueError: The data cannot be used; one sentence that names the item.
        """
        return self._train(None, training_data, validation_data)

    def train_from(self, predictor: P, training_data: Entries, validation_data: Entries | None = None) -> P:
        """Go on from a trained predictor with further data; where those say nothing, it stays what it was.

        Args:
            predictor: From an estimator with the same options.
            training_data, validation_data: As in `train`.
        Raises:
            ValueError: The predictor was trained with other options, or the data cannot be used.
        """
        return self._train(predictor, training_data, validation_data)

    def _train(self, predictor: P | None, training_data: Entries, validation_data: Entries | None) -> P:
        raise NotImplementedError


OTHER_OPTIONS = "train_from: the predictor was trained with other options than this estimator has"


def check_counts(where: str, **counts: int | None) -> None:
    """Raise unless all that are given are whole numbers of at least 1; no shapes.

    Raises:
        ValueError: One is not.
    """
    for name, value in counts.items():
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"{where}: {name}={value!r}, expected a whole number of at least 1")


def check_kinds(where: str, **options: tuple[Any, type | tuple[type, ...], str]) -> None:
    """Raise unless every value is of its kind; no shapes.

    Args:
        where: What was called.
        options: Name = (value, kind, what to give instead).
    Raises:
        ValueError: One is not.
    """
    for name, (value, kind, instead) in options.items():
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {name} is of type {type(value).__name__}, expected {instead}")
