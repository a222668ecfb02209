import pytest

from optimplug import errors
from optimplug.errors import MissingExtraError, OptimplugError, did_you_mean, nearest


def test_the_tree_in_the_docstring_is_the_tree():
    classes = [
        value for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, OptimplugError)
    ]  # fmt: skip
    for cls in classes:
        if cls is not OptimplugError:
            assert f"{cls.__name__} ({cls.__mro__[2].__name__})" in errors.__doc__


def test_a_missing_extra_is_an_import_error_with_the_command():
    error = MissingExtraError("drawing", "plot")
    assert isinstance(error, ImportError)
    assert str(error) == 'drawing needs an extra: pip install "optimplug[plot]"'


@pytest.mark.parametrize(
    ("word", "found"), [("weigth_decay", "weight_decay"), ("LR", "lr"), ("zzz", None), (3, None)]
)
def test_nearest(word, found):
    assert nearest(word, ["lr", "betas", "weight_decay"]) == found


def test_without_a_near_word_all_are_listed():
    assert did_you_mean("zzz", ["lr", "betas"]) == "; valid are: lr, betas"
