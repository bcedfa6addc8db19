"""What a family's bundle is made from, and where it is published: addresses, sizes and licences."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hub:
    """A repository of Hugging Face's hub.

    Attributes:
        repository: `owner/name`.
        folder: in the repository, in which the files are; empty for its root.
    """

    repository: str
    folder: str = ""

    def __str__(self) -> str:
        return f"huggingface.co/{self.repository}"


@dataclass(frozen=True)
class Drive:
    """A file of Google Drive's.

    Attributes:
        identity: of the file.
        url: of another place that gives the same file; tests have one.
    """

    identity: str
    url: str | None = None

    def __str__(self) -> str:
        return f"drive.google.com, file {self.identity}"


@dataclass(frozen=True)
class Part:
    """Something that is fetched as a whole, from the first of its places that has it.

    Attributes:
        name: what it is called here, and its file or folder.
        about: a line about it.
        licence: its terms, as far as its authors state them.
        places: mirrors, the preferred one first.
        files: of a repository, each a choice of names of which the first one there is taken; for Google Drive the name
            that the file gets.
        about_bytes: its size, roughly; None where nobody knows.
        sha256: file -> its hash, where it is known. A hub tells those of large files itself.
        optional: names of `files` that a place may lack.
        flag: what the command that makes bundles calls its directory; empty for a checkpoint.
    """

    name: str
    about: str
    licence: str
    places: tuple[Hub | Drive, ...]
    files: tuple[tuple[str, ...], ...]
    about_bytes: int | None
    sha256: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    flag: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a family needs.

    Attributes:
        parts: in the order in which they are fetched.
        choices: what may be fetched in place of one of the parts, by the name that `--checkpoint` takes.
        next: the command that makes a bundle of it; `{to}` is the folder, `{checkpoint}` the checkpoint in it.
    """

    parts: tuple[Part, ...]
    choices: dict[str, Part]
    next: str
