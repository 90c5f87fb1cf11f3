"""URLs in the parts that obstore wants, and how a server is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tasks import object_store
from tasks.errors import BadInput

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: URL schemes that can be read.
SCHEMES = ("s3", "gs", "az", *object_store.WEB_SCHEMES)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an object is.

    Attributes:
        name: the URL for messages and state, without query and password.
        root: the URL of bucket, container or web server; keeps the query and password of a web address.
        key: the object's path below ``root``, not percent-encoded.
    """

    name: str
    root: str
    key: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Take a URL apart; a bucket's keys are taken literally, the path of a web address is decoded.

        Raises:
            BadInput: it names no object.
        """
        scheme, _, rest = url.partition("://")
        is_web, query = scheme.lower() in object_store.WEB_SCHEMES, ""
        if is_web:
            rest, mark, query = rest.partition("#")[0].partition("?")
            query = mark + query
        netloc, _, path = rest.partition("/")
        host = netloc.rpartition("@")[2]
        key = unquote(path).lstrip("/") if is_web else path
        address = cls(f"{scheme.lower()}://{host}/{path}", f"{scheme.lower()}://{netloc}{query}", key)
        if not (host and key):
            remedy = "name one object, such as s3://bucket/folder/file.jsonl"
            raise BadInput(f"{address.name}: not the address of an object; {remedy}", source=address.name)
        return address

    @property
    def is_web(self) -> bool:
        """Whether a web server answers, which may lack range requests."""
        return self.root.startswith(object_store.WEB_SCHEMES)

    def connect(self) -> ObjectStore:
        """Build the store of this address; nothing is sent yet."""
        return object_store.connect(self.root, object_store.STREAMS)
