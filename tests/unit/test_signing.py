"""Signatures of tickets and specs."""

import pytest

from tasks.errors import UsageError
from tasks.messages import Ticket
from tasks.signing import Signer

OLD, NEW = b"o" * 32, b"n" * 32
TICKET = Ticket(version=1, job="encode-0001", chunk=7)


def test_without_keys_nothing_is_signed_and_everything_taken():
    """A cluster that asks for no signatures works as before."""
    assert Signer().sign_ticket(TICKET) == ""
    assert Signer().sign_spec("{}") == ""
    assert Signer().takes_ticket(TICKET, "")
    assert Signer().takes_spec("{}", "whatever")


def test_a_signature_holds_for_what_was_signed():
    """The same key takes it; for anything else it is worth nothing."""
    signer = Signer((OLD,))
    signature = signer.sign_ticket(TICKET)
    assert len(signature) == 32
    assert signer.takes_ticket(TICKET, signature)
    assert not signer.takes_ticket(TICKET.model_copy(update={"chunk": 8}), signature)
    assert not signer.takes_ticket(TICKET, "")
    assert not signer.takes_ticket(TICKET, signature[:-1])
    assert not Signer((NEW,)).takes_ticket(TICKET, signature)


def test_a_tickets_signature_is_no_specs():
    """The kind is signed too, so that one message never stands for another."""
    signer = Signer((OLD,))
    text = TICKET.model_dump_json()
    assert not signer.takes_spec(text, signer.sign_ticket(TICKET))


def test_keys_are_replaced_without_a_gap():
    """Both sides take both keys while one after the other changes to the new one."""
    before, between, after = Signer((OLD,)), Signer((OLD, NEW)), Signer((NEW, OLD))
    assert between.takes_spec("{}", before.sign_spec("{}"))
    assert between.takes_spec("{}", after.sign_spec("{}"))
    assert after.takes_spec("{}", between.sign_spec("{}"))


def test_keys_are_the_lines_of_a_file(tmp_path):
    """Blank lines and spaces around a key do not count."""
    file = tmp_path / "keys"
    file.write_bytes(NEW + b"\n\n  " + OLD + b" \r\n")
    assert Signer.read(file).keys == (NEW, OLD)
    assert Signer.read(None) == Signer()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"short\n", NEW + b"\nshort"])
def test_a_file_without_good_keys_is_refused(tmp_path, content):
    """Rather than sign with nothing; the line names the file and none of its content."""
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="keys: needs a key a line") as caught:
        Signer.read(file)
    assert "short\n" not in str(caught.value)
    assert NEW.decode() not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """With what the system says about it."""
    with pytest.raises(UsageError, match=r"signing_key_file .*missing: No such file"):
        Signer.read(tmp_path / "missing")


def test_a_signer_never_shows_its_keys():
    """Not even where a whole object is printed."""
    assert OLD.decode() not in repr(Signer((OLD,)))
