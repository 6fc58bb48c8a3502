"""What can go wrong when the hub is asked, in words: no network, no access, nothing there, no space."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from malmen_cli.errors import MalmenError, UnknownName
from malmen_cli.language_models.offline import online, stay_offline

_AGAIN = "run the command again: files that have arrived are kept"


@contextmanager
def asking(repo: str, revision: str | None) -> Iterator[None]:
    """The hub may be asked within the `with` block, without a word on stderr; what goes wrong is said with a remedy.

    Args:
        repo, revision: what is asked for, to be named.

    Raises:
        UnknownName: no such repository or revision. UsageError: the environment forbids downloads. MalmenError: no
        access, no network, a full disk.
    """
    stay_offline()
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with online():
            yield
    except MalmenError:
        raise
    except HFValidationError as error:
        raise UnknownName(f"{repo!r} cannot be a repository's id: {_first_line(error)}") from error
    except LocalEntryNotFoundError as error:  # says no more than that the cache does not have it either
        raise _error(error.__cause__ or error, repo, revision) from error
    except Exception as error:
        raise _error(error, repo, revision) from error
    finally:
        logging.set_verbosity(before)


def _error(error: BaseException, repo: str, revision: str | None) -> MalmenError:
    from huggingface_hub import constants, errors

    hub, status = constants.ENDPOINT, getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return MalmenError(
            f"{repo} is gated: its owners let in whom they have said yes to",
            remedy=f"ask for access at {hub}/{repo}, log in with `hf auth login` (or set HF_TOKEN), then run it again",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownName(
            f"{hub} has no model {repo}, or it is private",
            remedy="check its name; for a private one log in with `hf auth login` (or set HF_TOKEN)",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownName(
            f"{repo} has no revision {revision or 'main'}", remedy=f"see its branches and tags at {hub}/{repo}"
        )
    if status in (401, 403):
        return MalmenError(
            f"{hub} does not let you read {repo} ({status})",
            remedy="log in with `hf auth login`, or mend HF_TOKEN, then run the command again",
        )
    if status is not None:
        return MalmenError(f"{hub} answered {status} when asked for {repo}", remedy=f"wait a little, then {_AGAIN}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MalmenError(
            f"the disk of {constants.HF_HUB_CACHE} is full",
            remedy=f"free some space or set HF_HUB_CACHE, then {_AGAIN}",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return MalmenError(
            f"cannot write {error.filename}: {error.strerror}", remedy="check HF_HUB_CACHE and its permissions"
        )
    if type(error).__module__.startswith("httpx"):  # httpx or httpx2, by the version of huggingface_hub
        what = "takes too long to answer" if "Timeout" in type(error).__name__ else "cannot be reached"
        return MalmenError(
            f"{hub} {what}: {_first_line(error)}", remedy=f"check the network, the proxy and HF_ENDPOINT, then {_AGAIN}"
        )
    return MalmenError(f"the download of {repo} failed: {_first_line(error)}", remedy=_AGAIN)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
