import pytest

from optimplug import ArgumentError, Horizon
from optimplug.recipe.text.durations import Duration

RUN = Horizon(total_steps=1000, steps_per_epoch=90)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (0, 0),
        (500, 500),
        ("500", 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("2 epochs", 180),
        ("0.5 epochs", 45),
        ("1 epoch", 90),
        ("6%", 60),
        ("6 %", 60),
        ("7%", 70),  # in floating point 0.07 * 1000 is a little more than 70
        ("0.25%", 3),
        ("100%", 1000),
        ("0%", 0),
    ],
)
def test_a_duration_in_steps(text, steps):
    assert Duration.parse(text).steps(RUN) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("120%", "'120%' is longer than the run; the most is '100%'"),
        ("10 setps", "did you mean '10 steps'"),
        ("2 epocs", "did you mean '2 epochs'"),
        ("rset", "did you mean 'rest'"),
        ("1.5 steps", "must be whole"),
        ("-3", "must be a number of steps"),
        (-3, "must be a number of steps"),
        (1.5, "must be a number of steps"),
        (0.06, "did you mean '6%'"),
        (True, "must be a number of steps"),
        (None, "must be a number of steps"),
        ("", "must be a number of steps"),
    ],
)
def test_a_duration_that_is_none(text, message):
    with pytest.raises(ValueError, match=message):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "needs"),
    [("6%", "total_steps"), ("2 epochs", "steps_per_epoch"), ("rest", "left|leave")],
)
def test_what_the_horizon_lacks_is_named(text, needs):
    with pytest.raises(ValueError, match=needs):
        Duration.parse(text).steps(Horizon())


@pytest.mark.parametrize("bad", [0, -1, 1.5, "10"])
def test_a_horizon_is_positive_or_unknown(bad):
    with pytest.raises(ArgumentError, match="total_steps must be an int >= 1"):
        Horizon(total_steps=bad)
    with pytest.raises(ArgumentError, match="steps_per_epoch must be an int >= 1"):
        Horizon(steps_per_epoch=bad)
