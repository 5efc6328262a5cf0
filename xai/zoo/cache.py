"""Pretrained weights from the caches of torch and the Hugging Face hub, or by download; soon says if neither works."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from xai.errors import XaiError, error
from xai.zoo.shipped import DEFAULT
from xai.zoo.state_dicts import file_hash

ANSWER_SECONDS, STALL_SECONDS = 5.0, 30.0
_HASH = re.compile(r"-([a-f0-9]{8,})\.")  # torch's habit: eight or more digits of the file's sha256 in its name


def torch_file(url: str, what: str) -> tuple[Path, list[str]]:
    """The file of `url` from torch's cache (TORCH_HOME), downloaded into it where it is not there, and notes about it.

    Like torch, a file that is there is taken as it is; a sha256 other than the one in its name is noted. Raises
    XaiError where there is neither a file nor a connection.
    """
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / os.path.basename(urlsplit(url).path)
    expected = _HASH.search(path.name)
    if path.is_file():
        notes = [f"weights from torch's cache: {path.name}"]
        if expected and not file_hash(path, 64).startswith(expected[1]):
            notes.append(
                f"the sha256 of {path.name} begins with {file_hash(path, 8)}, not as its name says: "
                "it is not the file that was published"
            )
        return path, notes
    if not reachable(url):
        raise unavailable(what, f"{path.name} is not in {folder}", urlsplit(url).hostname or url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with stalling_after(STALL_SECONDS):
            torch.hub.download_url_to_file(
                url, str(path), expected[1] if expected else None, progress=sys.stderr.isatty()
            )
    except (OSError, RuntimeError) as problem:
        raise unavailable(
            what, f"the download of {path.name} failed ({_first_line(problem)})", urlsplit(url).hostname or url
        ) from problem
    return path, [f"weights downloaded: {url}"]


def hub_file(repository: str, names: Sequence[str], revision: str | None, what: str) -> tuple[Path, list[str]]:
    """The first of `names` in a repository of the Hugging Face hub, from its cache (HF_HOME) or downloaded, and notes.

    Raises XaiError where no such file is cached and the hub cannot be reached, or does not have it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for name in names:
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found), [f"{name} of {repository} from the cache of the Hugging Face hub"]
    if not hub_reachable():
        raise unavailable(what, f"{names[0]} of {repository} is not in the cache of the Hugging Face hub", "the hub")
    for name in names:
        try:
            with stalling_after(STALL_SECONDS):
                return Path(hf_hub_download(repository, name, revision=revision)), [
                    f"{name} of {repository} downloaded from the Hugging Face hub"
                ]
        except EntryNotFoundError:
            continue
        except (RepositoryNotFoundError, RevisionNotFoundError) as problem:
            raise error(
                "the model",
                "a public repository of the Hugging Face hub",
                repr(repository + (f"@{revision}" if revision else "")),
                "Check its name, or log in with `hf auth login` if it is private",
            ) from problem
        except (HfHubHTTPError, OSError) as problem:
            raise unavailable(what, f"the download of {name} failed ({_first_line(problem)})", "the hub") from problem
    raise error(
        f"the repository {repository}",
        f"one with {' or '.join(names)}",
        "none of them",
        "Check that it holds a model of this source",
    )


def hub_has(repository: str, names: Sequence[str], revision: str | None) -> bool:
    """Whether the hub's cache, or the hub where it can be reached, holds one of `names`."""
    from huggingface_hub import file_exists, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in names):
        return True
    return hub_reachable() and any(file_exists(repository, name, revision=revision) for name in names)


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers and is wanted: HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    return reachable(str(constants.ENDPOINT))


def reachable(url: str) -> bool:
    """Whether the server of `url` answers within a few seconds, whatever it answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def unavailable(what: str, why: str, host: str) -> XaiError:
    """The error for pretrained weights that cannot be had here."""
    return error(
        f"the weights of {what}",
        "in the local cache or to be downloaded",
        f"neither: {why}, and {host} cannot be reached" if "failed" not in why else why,
        f"Give --weights FILE or --weights random, or take a model that ships with the package, such as {DEFAULT}",
    )


@contextlib.contextmanager
def stalling_after(seconds: float) -> Iterator[None]:
    """A connection opened inside gives up after so many seconds without a byte; torch's own download never would."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
