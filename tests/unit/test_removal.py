"""The ages of jobs that are to be removed."""

import pytest

from producer.removal import parse_duration
from tasks.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400)],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    """As people write them."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "-7d", "7D", "7days", "1e3s", "nan", "٧d", "9" * 10 + "d"])
def test_what_is_no_duration_is_refused(text):
    """Nothing is removed by a misunderstanding."""
    with pytest.raises(UsageError, match="write 90s, 30m, 12h, 7d or 2w"):
        parse_duration(text)
