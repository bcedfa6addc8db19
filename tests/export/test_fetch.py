"""Fetching weights from servers that behave, and from such that do not. All of them are on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vsr_trt.build import main
from vsr_trt.export.families.published import FAMILIES
from vsr_trt.export.families.stable_diffusion.published import STABLE_DIFFUSION
from vsr_trt.export.published import Drive, Hub, Part, Wanted
from vsr_trt.recipes.fetch import cli, download
from vsr_trt.runtime.errors import InputError, OutputError

COMMIT = "1" * 40
LARGE = bytes(range(256)) * 3000
FILES = {
    "vae/config.json": b'{"a": 1}',
    "vae/weights.safetensors": LARGE,
    "unet/weights.safetensors": LARGE[::-1],
}


def torch_file() -> bytes:
    """A zip with checksums, as torch writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("model/data.pkl"), LARGE)  # without the time of day
    return stream.getvalue()


@dataclass
class Server:
    """A hub of one repository, and files under /file/.

    Attributes:
        files: of the repository.
        plain: name -> content, under /file/.
        cut: path -> how many bytes of the answer are sent before the connection is cut, once.
        lie: path -> content that is sent in place of the right one.
        html: every answer is a page.
        wrong_range: whatever part is asked for, the answer begins elsewhere.
        asked: (path, its Range).
    """

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    plain: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    lie: dict[str, bytes] = field(default_factory=dict)
    html: bool = False
    wrong_range: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        path = handler.path.partition("?")[0]
        if body:
            self.asked.append((path, handler.headers.get("Range")))
        if self.html:
            page = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
            self._send(handler, page, body, {"Content-Type": "text/html"})
        elif path.startswith("/api/models/own/model"):
            entries = [
                {
                    "rfilename": name,
                    "size": len(content),
                    **(
                        {
                            "lfs": {
                                "sha256": hashlib.sha256(content).hexdigest(),
                                "size": len(content),
                                "pointerSize": 1,
                            }
                        }
                        if name.endswith("safetensors")
                        else {}
                    ),
                }
                for name, content in self.files.items()
            ]
            listing = {"id": "own/model", "modelId": "own/model", "sha": COMMIT, "siblings": entries}
            self._send(handler, json.dumps(listing).encode(), body, {"Content-Type": "application/json"})
        elif (match := re.fullmatch(rf"/own/model/resolve/{COMMIT}/(.+)", path)) and match[1] in self.files:
            content = self.lie.get(match[1], self.files[match[1]])
            etag = hashlib.sha256(self.files[match[1]]).hexdigest()
            self._send(handler, content, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, match[1])
        elif path.startswith("/file/") and path[6:] in self.plain:
            name = path[6:]
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            self._send(handler, self.lie.get(name, self.plain[name]), body, headers, name)
        else:
            handler.send_error(404)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        content: bytes,
        body: bool,
        headers: dict[str, str],
        name: str = "",
    ) -> None:
        asked, total, start = handler.headers.get("Range"), len(content), 0
        if asked is not None and body:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            first = 0 if self.wrong_range else start
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            content = content[first:]
        else:
            handler.send_response(200)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        if body:
            most = self.cut.pop(name, None)
            handler.wfile.write(content if most is None else content[:most])
            if most is not None:
                handler.wfile.flush()
                handler.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            found.answer(self, body=True)

        def do_HEAD(self) -> None:
            found.answer(self, body=False)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        found.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield found
        listening.shutdown()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy nor the user's caches and tokens."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


MODEL = Part(
    "model",
    "a model",
    "MIT",
    (Hub("own/model"),),
    (("vae/config.json",), ("vae/other.bin", "vae/weights.safetensors"), ("vae/extra.json",)),
    len(LARGE),
    optional=frozenset({"vae/extra.json"}),
)


def drive(server: Server, name: str = "model.pkl", **values: Any) -> Part:
    place = Drive("identity", f"{server.url}/file/{name}")
    return Part(name, "a checkpoint", "MIT", (place,), ((name,),), None, **values)


def fetched(part: Part, to: Path, server: Server) -> tuple[list[Path], list[str]]:
    said: list[str] = []
    return download.fetch(part, to, said.append, server.url), said


def test_only_what_is_needed_comes_from_the_hub(tmp_path: Path, server: Server) -> None:
    paths, said = fetched(MODEL, tmp_path, server)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "model/vae/config.json",
        "model/vae/weights.safetensors",
    ]
    assert paths[1].read_bytes() == LARGE
    assert not any("unet" in path for path, _ in server.asked)
    # the hub tells the hash of the large one; the other's is recorded
    assert len(said) == 1
    assert said[0].startswith("model/vae/config.json: nobody publishes its hash; recorded now")
    before = len(server.asked)
    again, said = fetched(MODEL, tmp_path, server)
    assert (again, said) == (paths, [])
    assert all("/api/" in path for path, _ in server.asked[before:])  # nothing twice


def test_a_cut_is_resumed(tmp_path: Path, server: Server) -> None:
    server.files["vae/weights.safetensors"] = whole = LARGE * 32  # of which the library writes 10 MB at once
    server.cut["vae/weights.safetensors"] = 15_000_000
    with _either():
        fetched(MODEL, tmp_path, server)
    paths, _ = fetched(MODEL, tmp_path, server)
    assert paths[1].read_bytes() == whole
    parts = [asked for path, asked in server.asked if path.endswith("weights.safetensors") and asked]
    assert any(part != "bytes=0-" for part in parts)


def _either() -> Any:
    """The library may resume by itself within one call, or leave that to the next."""
    return contextlib.suppress(InputError)


def test_a_drive_s_file_is_resumed_too(tmp_path: Path, server: Server) -> None:
    server.plain["model.pkl"] = torch_file()
    server.cut["model.pkl"] = 200_000
    with _either():
        fetched(drive(server), tmp_path, server)
    paths, _ = fetched(drive(server), tmp_path, server)
    assert paths == [tmp_path / "model.pkl"]
    assert paths[0].read_bytes() == torch_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fetched.json", "model.pkl"]


def test_a_wrong_range_of_the_hub_does_not_become_a_file(tmp_path: Path, server: Server) -> None:
    server.files["vae/weights.safetensors"] = whole = LARGE * 32
    server.cut["vae/weights.safetensors"], server.wrong_range = 15_000_000, True
    target = tmp_path / "model/vae/weights.safetensors"
    with _either():
        fetched(MODEL, tmp_path, server)
    assert not target.exists() or target.read_bytes() == whole
    server.wrong_range = False
    assert fetched(MODEL, tmp_path, server)[0][1].read_bytes() == whole


def test_a_wrong_range_does_not_become_a_file(tmp_path: Path, server: Server) -> None:
    server.plain["model.pkl"] = torch_file()
    server.cut["model.pkl"], server.wrong_range = 200_000, True
    for _ in range(3):
        with _either():
            fetched(drive(server), tmp_path, server)
        assert not (tmp_path / "model.pkl").exists() or (tmp_path / "model.pkl").read_bytes() == torch_file()


@pytest.mark.parametrize("wanted", ["hub", "drive"])
def test_a_page_is_not_taken_for_the_file(tmp_path: Path, server: Server, wanted: str) -> None:
    server.html = True
    part = MODEL if wanted == "hub" else drive(server)
    with pytest.raises(InputError, match="could not be fetched"):
        fetched(part, tmp_path, server)
    assert not (tmp_path / "model.pkl").exists()


def test_a_quota_is_named(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    def refuse(*_: Any, **__: Any) -> None:
        raise gdown.exceptions.FileURLRetrievalError(
            "Too many users have viewed or downloaded this file recently"
        )

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(
        InputError, match=r"a quota.*Fetch it with a browser, https://drive\.google\.com/file/d/identity"
    ):
        fetched(drive(server), tmp_path, server)


def test_a_wrong_hash_is_refused_and_the_file_removed(tmp_path: Path, server: Server) -> None:
    server.lie["vae/weights.safetensors"] = LARGE[:-1] + b"x"
    with pytest.raises(InputError, match="another SHA-256 than that of the hub's list"):
        fetched(MODEL, tmp_path, server)
    assert not (tmp_path / "model/vae/weights.safetensors").exists()
    del server.lie["vae/weights.safetensors"]
    assert fetched(MODEL, tmp_path, server)[0][1].read_bytes() == LARGE
    server.plain["model.pkl"] = torch_file()
    with pytest.raises(InputError, match="another SHA-256 than that known here"):
        fetched(drive(server, sha256={"model.pkl": "0" * 64}), tmp_path, server)


def test_a_damaged_torch_file_is_refused_without_a_hash(tmp_path: Path, server: Server) -> None:
    good = torch_file()
    server.plain["model.pkl"] = good
    server.lie["model.pkl"] = good[:5000] + b"!" + good[5001:]
    with pytest.raises(InputError, match=r"model\.pkl is damaged"):
        fetched(drive(server), tmp_path, server)
    assert not list(tmp_path.glob("*.pkl"))


def test_what_was_fetched_first_is_what_counts(tmp_path: Path, server: Server) -> None:
    server.plain["model.pkl"] = torch_file()
    fetched(drive(server), tmp_path, server)
    before = len(server.asked)
    fetched(drive(server), tmp_path, server)
    assert len(server.asked) == before  # it is there, and the same
    (tmp_path / "model.pkl").unlink()
    server.plain["model.pkl"] = torch_file() + b"another"
    with pytest.raises(InputError, match="is not what was fetched at first"):
        fetched(drive(server), tmp_path, server)


def test_a_dead_mirror_is_passed_over(tmp_path: Path, server: Server) -> None:
    places = (Hub("gone/model"), Hub("own/model"))
    part = Part("model", "", "", places, MODEL.files, None, optional=MODEL.optional)
    paths, said = fetched(part, tmp_path, server)
    assert paths[1].read_bytes() == LARGE
    assert "gone/model does not give model" in said[0]
    assert said[0].endswith("trying huggingface.co/own/model")


def test_no_place_at_all_is_one_sentence(tmp_path: Path, server: Server) -> None:
    with pytest.raises(
        InputError, match=r"model could not be fetched\. huggingface\.co/own/model: .*Try again later"
    ):
        download.fetch(MODEL, tmp_path, lambda text: None, "http://127.0.0.1:9")


def test_a_repository_that_lacks_a_file_says_which(tmp_path: Path, server: Server) -> None:
    del server.files["vae/weights.safetensors"]
    with pytest.raises(InputError, match=r"it has no vae/other\.bin or vae/weights\.safetensors"):
        fetched(MODEL, tmp_path, server)


def test_a_full_disk_is_refused_before_anything_is_fetched(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    with pytest.raises(OutputError, match=r"has 1\.1 GB free.*--to DIR"):
        fetched(MODEL, tmp_path, server)
    assert [path for path, _ in server.asked if "/api/" not in path] == []
    with pytest.raises(OutputError, match=r"1\.7 GB are to be fetched"):
        download.check_disk([STABLE_DIFFUSION], tmp_path)


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def own_family(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.plain["model.pkl"] = torch_file()
    own = Wanted((MODEL,), {"only": drive(server)}, "next: {to} {checkpoint}")
    monkeypatch.setitem(cli.FAMILIES, "dloral", own)
    monkeypatch.setenv(cli.ENDPOINT, server.url)


def test_as_typed(
    tmp_path: Path, own_family: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "w"
    typed = ["fetch", "dloral", "--to", str(to), "--checkpoint", "only"]
    assert main([*typed, "--list"]) == 0
    assert "a checkpoint" in capsys.readouterr().err
    assert not to.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(typed) == 2  # nobody is there who could agree
    assert "--yes" in capsys.readouterr().err
    assert main([*typed, "--yes", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"]["model.pkl"] == [str(to / "model.pkl")]
    assert printed["next"] == f"next: {to} {to / 'model.pkl'}"
    assert main(["fetch", "dloral", "--checkpoint", "other", "--yes"]) == 2


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("\n", 2), ("no\n", 2)])
def test_licences_are_asked_for(
    tmp_path: Path, own_family: None, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    to = tmp_path / "w"
    assert main(["fetch", "dloral", "--to", str(to), "--checkpoint", "only"]) == code
    assert (to / "model.pkl").exists() == (code == 0)


@pytest.mark.parametrize("family", ["dloral", "star"])
def test_what_is_published_is_listed_without_a_connection(
    family: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["fetch", family, "--list"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "licence" in said
    for part in (*FAMILIES[family].parts, next(iter(FAMILIES[family].choices.values()))):
        assert part.name in said


def test_a_repository_may_stand_for_the_directory(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    server.files = {
        name: b"{}" if name.endswith(("json", "txt")) else LARGE
        for names in STABLE_DIFFUSION.files
        for name in names[:1]
    }
    monkeypatch.setenv(cli.ENDPOINT, server.url)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = cli.directory(Path("own/model"), STABLE_DIFFUSION, Console(file=io.StringIO()))
    assert found == tmp_path / "vsr-trt/weights/own--model/sd"
    assert (found / "vae/diffusion_pytorch_model.safetensors").read_bytes() == LARGE
    (tmp_path / "own/model").mkdir(parents=True)
    assert cli.directory(Path("own/model"), STABLE_DIFFUSION, Console()) == Path(
        "own/model"
    )  # a directory is one
    assert cli.directory(Path("/no/where/at/all"), STABLE_DIFFUSION, Console()) == Path("/no/where/at/all")
