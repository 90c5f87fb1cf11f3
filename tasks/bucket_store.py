"""A store in a bucket, through obstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore

from tasks.errors import DamagedObject, StoreUnavailable, UsageError
from tasks.object_store import first_line

#: Objects of a listing that are in memory at a time: a page of S3's, and what it deletes in one request.
_PAGE = 1000


class BucketStore:
    """Objects of a bucket, below a prefix if the URL has a path."""

    def __init__(self, client: ObjectStore, url: str) -> None:
        self._client = client
        self.url = url

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole."""
        with self._writing(key):
            obstore.put(self._client, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken."""
        with self._writing(key):
            try:
                obstore.put(self._client, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        """Read an object."""
        with self._reaching(key):
            answer = obstore.get(self._client, key)
            size, data = answer.meta["size"], bytes(answer.bytes())
        if len(data) != size:
            raise StoreUnavailable(f"The store {self.url} sent {len(data)} of {size} bytes of {key}.", key=key)
        return data

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes of an object."""
        with self._reaching(key):
            try:
                return bytes(obstore.get_range(self._client, key, start=start, end=stop))
            except GenericError as exc:
                if "416" not in first_line(exc):
                    raise
                raise DamagedObject(f"{key} in {self.url} ends before byte {start}.", key=key) from exc

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._reaching(key):
            try:
                obstore.delete(self._client, key)
            except FileNotFoundError:
                return

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder, in no order."""
        for page in self._pages(prefix):
            yield from page

    def measure_folder(self, prefix: str) -> tuple[int, int]:
        """Return how many objects are below a folder, and their bytes."""
        pages = [(len(page), sum(size for _, size in page)) for page in self._listing(prefix)]
        return sum(count for count, _ in pages), sum(size for _, size in pages)

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder."""
        for page in self._pages(prefix):
            with self._reaching(prefix):
                try:
                    obstore.delete(self._client, page)
                except FileNotFoundError:  # somebody else deletes here too
                    for key in page:
                        self.delete(key)

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        for page in self._listing(prefix):
            yield [key for key, _ in page]

    def _listing(self, prefix: str) -> Iterator[list[tuple[str, int]]]:
        with self._writing(prefix):
            for page in obstore.list(self._client, prefix, chunk_size=_PAGE):
                yield [(found["path"], found["size"]) for found in page]

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        with self._reaching(key):
            try:
                yield
            except FileNotFoundError as exc:
                raise UsageError(f"The store {self.url} is not there: make its bucket or container first.") from exc

    @contextmanager
    def _reaching(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise DamagedObject(f"{key} is missing in {self.url}.", key=key) from exc
        except (PermissionDeniedError, UnauthenticatedError) as exc:
            raise StoreUnavailable(
                f"The store {self.url} refuses this user on {key}. Check the credentials in the environment and what "
                "they allow.",
                key=key,
            ) from exc
        except (BaseError, OSError) as exc:
            raise StoreUnavailable(f"The store {self.url} failed on {key}: {first_line(exc)}", key=key) from exc
