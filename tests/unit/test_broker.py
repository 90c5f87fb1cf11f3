"""The broker's URL: read, translated, and safe to show."""

import pytest

from tasks.broker import celery_url, check_url, connect, redis_url
from tasks.errors import UsageError
from tasks.redaction import redact, redact_text

#: The same broker in redis-py's words and in Celery's.
TRANSLATIONS = [
    ("redis://host:6379/0", "redis://host:6379/0"),
    ("rediss://user:pw@host:6380/2?ssl_cert_reqs=required", "rediss://user:pw@host:6380/2?ssl_cert_reqs=required"),
    ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
    ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
    ("unix://:pw@/run/valkey.sock?db=3", "redis+socket://:pw@/run/valkey.sock?virtual_host=3"),
    ("unix:///run/a%20b.sock?db=3&password=x%26y", "redis+socket:///run/a%20b.sock?virtual_host=3&password=x%26y"),
]


@pytest.mark.parametrize(("ours", "celerys"), TRANSLATIONS)
def test_a_url_is_translated_for_celery(ours, celerys):
    """A socket has another scheme and another name for its database there."""
    assert celery_url(ours) == celerys
    assert celery_url(celerys) == celerys


@pytest.mark.parametrize(("ours", "celerys"), TRANSLATIONS)
def test_a_url_is_translated_for_redis(ours, celerys):
    """A URL in Celery's form is taken too."""
    assert redis_url(celerys) == ours
    assert redis_url(ours) == ours


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:pw@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:p%40w@host/0", "redis://***@host/0"),
        ("redis://user:p@w@host/0", "redis://***@host/0"),
        ("redis://host/0?password=pw", "redis://host/0"),
        ("redis://host?password=pw", "redis://host"),
        ("redis://host/0#pw", "redis://host/0"),
        ("unix://user:pw@/run/v.sock?db=1", "unix://***@/run/v.sock"),
        ("unix:///run/me@home/v.sock?db=1", "unix:///run/me@home/v.sock"),
        ("s3://bucket/folder@v1", "s3://bucket/folder@v1"),
        ("file:///data/x", "file:///data/x"),
        ("localhost:6379", "localhost:6379"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    """Logs and errors name the broker and nothing more."""
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:SEC/RET@host:6379/0",
        "redis://user:SEC?RET@host:6379/0",
        "redis://user:SEC#RET@host:6379/0",
        "redis://user:SEC@RET/x@host:6379/0",
        "redis://:SEC[RET@host",
        "user:SECRET@host:6379",
        "amqp://user:SEC/RET@host",
    ],
)
def test_a_password_that_is_not_encoded_is_not_shown_either(url):
    """A mistyped URL ends up in an error message, so it is hidden as far as there is doubt."""
    assert "SEC" not in redact(url)
    assert "RET" not in redact(url)


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://host:6380/1", "unix:///run/v.sock", "redis+socket:///v.sock?virtual_host=1"]
)
def test_redis_in_any_form_is_taken(url):
    """The URL comes back as it was."""
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("amqp://host", "--broker amqp://host: penstock needs Redis or Valkey: redis://HOST:PORT/DB, "),
        ("localhost:6379", "--broker localhost:6379: penstock needs Redis or Valkey"),
        ("", "--broker : penstock needs Redis or Valkey"),
        ("redis://", "--broker redis://: names no host."),
        ("unix://", "--broker unix://: names no host."),
        ("redis://host:port/0", "--broker redis://host:port/0: no URL."),
        ("redis://[::1", "--broker redis://[::1: no URL."),
        ("redis://user:p/w@host:6379/0", "--broker redis://***: no URL. In a password, write /"),
    ],
)
def test_what_is_no_broker_is_refused_in_one_line(url, line):
    """The line repeats what was given, says what is wanted, and hides what is secret."""
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://host?db=SECRET", "redis://host?SECRET=1", "redis://host?socket_timeout=SECRET"]
)
def test_an_unknown_option_in_a_url_is_refused_before_anything_is_sent(url):
    """redis-py would say so with a traceback, some of it at the first command only."""
    with pytest.raises(UsageError) as caught:
        connect(url)
    assert str(caught.value) == (
        "--broker redis://host: an option after its ? is unknown to redis-py, or has a wrong value."
    )


def test_a_client_has_time_limits_and_retries():
    """Without them a half-open connection hangs for good."""
    with connect("unix:///nowhere.sock?db=2") as client:
        options = client.get_connection_kwargs()
    assert (options["path"], options["db"], options["decode_responses"]) == ("/nowhere.sock", 2, True)
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (5, 5)
    assert options["health_check_interval"] == 10
    assert options["retry"].get_retries() == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://host/x.jsonl?sig=SECRET in 2 s", "GET https://host/x.jsonl in 2 s"),
        ("at redis://user:SECRET@host:6379/0, and so on.", "at redis://***@host:6379/0, and so on."),
        ("(https://u:SECRET@host/x): no", "(https://***@host/x): no"),
        ('{"url": "rediss://:SECRET@h/0"}', '{"url": "rediss://***@h/0"}'),
        ("--out v.npy?sig=SECRET: no", "--out v.npy?*** no"),
        ("two: s3://a/b?x=SECRET http://:SECRET@c", "two: s3://a/b http://***@c"),
        ("why? nobody = knows", "why? nobody = knows"),
        ("data/part-?.txt is a glob", "data/part-?.txt is a glob"),
    ],
)
def test_a_text_is_shown_without_the_secrets_of_its_addresses(text, shown):
    """Errors of libraries quote whole addresses; the rest of the text stays."""
    assert redact_text(text) == shown
